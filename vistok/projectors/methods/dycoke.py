"""DyCoke (arXiv 2411.15024), first stage: what a video repeats from frame to frame is dropped.

In each group of four frames the first stays whole; the second keeps the tokens that are least like those at the same
places of the first, the fourth those least like the third, and then the third those least like the first. Differs from
the release: its loop stops before the last group, here every frame has its turn, and a short last group is thinned as
far as it goes. The second stage, which prunes the cache step by step while decoding, is not part of this.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import Compressor, ImageTokens, Kept, budget, check_keep

GROUP = 4
BESIDE = {1: 0, 3: 2, 2: 0}  # by place in a group, the frame that a frame is compared with; the first stays whole


def novel_tokens(tokens: Tensor, beside: Tensor, count: int) -> Tensor:
    """The tokens that are least like another frame's at the same places.

    Args:
        tokens, beside: of two frames, [N, D].
        count: how many.

    Returns:
        Places, ascending, int64 [count].
    """
    likeness = F.cosine_similarity(tokens.float(), beside.float(), dim=-1)
    return likeness.argsort(stable=True)[:count].sort().values


class DyCoke(Compressor):
    """Drops what the frames of a video repeat.

    Args:
        keep: tokens that stay of a frame that is thinned (int), or their share (float); the first frame of each four
            stays whole.
    """

    name = "dycoke"
    temporal = True
    newlines = "all"

    def __init__(self, keep: int | float = 0.3) -> None:
        self.keep = check_keep(keep)

    def select(self, image: ImageTokens) -> list[Kept]:
        raise VistokError("dycoke drops what frames of a video repeat, and this is a picture: choose another method.")

    def select_frames(self, frames: list[ImageTokens]) -> list[list[Kept]]:
        kept = []
        for i, frame in enumerate(frames):
            tokens = frame.features[0]
            places = torch.arange(len(tokens), device=tokens.device)
            if i % GROUP in BESIDE:
                (count,) = budget(self.keep, frame.valid)
                first = i - i % GROUP
                places = novel_tokens(tokens, frames[first + BESIDE[i % GROUP]].features[0], count)
            kept.append([Kept(places)])
        return kept
