"""PruneVid (arXiv 2412.16117), first stage: what stands still in a scene is told once, and tokens are clustered.

Frames are parted into scenes by density peaks. Places of a scene whose tokens are alike in all frames are static: their
mean over time stands for them, in the scene's first frame. Static places, and the others of each frame, are then
clustered by density peaks to their means. Differs from the release: groups of 14 tokens and fewer are clustered as
well, so that ``keep`` holds for small frames, and ties go by order, not by noise. The second stage, which prunes by the
question's attention in a layer of the language model, is not part of this: FastV drops tokens there.
"""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import Compressor, ImageTokens, Kept, budget, check_keep, everything
from vistok.projectors.methods.density_peaks import cluster, means

NEIGHBOURS = 7


def runs(labels: list[int]) -> list[tuple[int, int, int]]:
    """Label, first place and the place behind the last of each run of equal labels."""
    found, start = [], 0
    for label, run in groupby(labels):
        length = len(list(run))
        found.append((label, start, start + length))
        start += length
    return found


def contiguous(labels: list[int]) -> list[int]:
    """Clusters of frames as scenes: of each cluster its longest run stays, if that is of two frames or more.

    The frames between join the longer of the scenes beside them, the earlier of two of a length.
    """
    longest: dict[int, int] = {}
    for label, first, end in runs(labels):
        longest[label] = max(longest.get(label, 2), end - first)
    scenes = [-1] * len(labels)
    for label, first, end in runs(labels):
        if end - first == longest[label]:
            scenes[first:end] = [label] * (end - first)
    while -1 in scenes and len(set(scenes)) > 1:
        parts = runs(scenes)
        at = next(i for i, (label, _, _) in enumerate(parts) if label == -1)
        beside = [parts[i] for i in (at - 1, at + 1) if 0 <= i < len(parts)]
        label = max(beside, key=lambda part: part[2] - part[1])[0]
        scenes[parts[at][1] : parts[at][2]] = [label] * (parts[at][2] - parts[at][1])
    return scenes


def static_places(frames: Tensor, likeness: float) -> Tensor:
    """Places whose tokens have a mean cosine, over all pairs of frames [W, N, D], above ``likeness``: bool [N]."""
    count = len(frames)
    if count == 1:
        return torch.zeros(frames.shape[1], dtype=torch.bool, device=frames.device)
    unit = F.normalize(frames.float(), dim=-1)
    pairs = unit.sum(0).square().sum(-1) - count  # cosines of all pairs, without those of frames with themselves
    return pairs / (count * (count - 1)) > likeness


class PruneVid(Compressor):
    """Tells what stands still once, and clusters tokens.

    Args:
        keep: tokens of a frame (int), or share of them (float), that static places, and the others of each frame, are
            clustered to.
        likeness: mean cosine over time above which a place is static.
        scenes: clusters of frames, as a share of them.
    """

    name = "prunevid"
    temporal = True
    newlines = "all"

    def __init__(self, keep: int | float = 0.5, likeness: float = 0.8, scenes: float = 0.25) -> None:
        self.keep, self.likeness = check_keep(keep), likeness
        if not 0 < scenes <= 1:
            raise VistokError(f"scenes is {scenes!r}: give a share of the frames, above 0 and up to 1.")
        self.scenes = scenes

    def select(self, image: ImageTokens) -> list[Kept]:
        raise VistokError("prunevid compares the frames of a video, and this is a picture: choose another method.")

    def select_frames(self, frames: list[ImageTokens]) -> list[list[Kept]]:
        valid = frames[0].valid
        share = self.keep if isinstance(self.keep, float) else budget(self.keep, valid)[0] / valid.shape[1]
        if share == 1.0:
            return [everything(frame) for frame in frames]
        features = torch.stack([frame.features[0] for frame in frames])  # [T, N, D]
        hidden = torch.stack([frame.hidden[0] for frame in frames])
        _, labels = cluster(features.mean(1), max(1, int(len(frames) * self.scenes)), NEIGHBOURS)
        kept = []
        for _, first, end in runs(contiguous(labels.tolist())):
            there = slice(first, end)
            still = static_places(features[there], self.likeness)
            once = self._clustered(features[there].mean(0), hidden[there].mean(0), still, share)
            for i in range(first, end):
                parts = [self._clustered(features[i], hidden[i], ~still, share), *([once] if i == first else [])]
                kept.append([Kept(*(torch.cat(part) for part in zip(*parts, strict=True)))])
        return kept

    @staticmethod
    def _clustered(features: Tensor, hidden: Tensor, which: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Centres and means of clusters of some tokens of a frame."""
        places = which.nonzero().squeeze(1)
        if not len(places):
            return places, hidden[places]
        count = max(1, int(len(places) * share))
        centres, owner = cluster(features[places], count, NEIGHBOURS)
        return places[centres], means(hidden[places], owner, count)
