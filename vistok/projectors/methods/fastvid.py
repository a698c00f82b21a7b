"""FastVID (arXiv 2503.11187): segments of like frames, in which what is not salient joins anchors. No training.

A video is cut where neighbouring frames are unlike, and where they are least alike. Every frame keeps the tokens that
its tower attends to most. In every p-th frame of a segment, counted from its end, density peaks of the other tokens are
anchors, each of which takes the mean of those tokens of the segment that are most like it. Differs from the release:
frames are compared by the mean of their tokens, where it runs the pooling head of SigLIP, which the models' checkpoints
leave out, and salience is the mean attention received in the last layer; ties go by order, not by noise.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import Compressor, ImageTokens, Kept, Needs, budget, check_keep, everything
from vistok.projectors.methods.density_peaks import means, peak_scores

NEIGHBOURS = 4


def segments(frames: Tensor, cuts: int, likeness: float) -> list[tuple[int, int]]:
    """Cut a video where frames are unlike.

    Args:
        frames: what frames are compared by, [T, D].
        cuts: how many places where neighbours are least alike are cut whatever their likeness.
        likeness: cosine of neighbours below which all are cut.

    Returns:
        First frame and the one behind the last of each segment.
    """
    alike = F.cosine_similarity(frames[:-1].float(), frames[1:].float(), dim=-1)
    cut = alike < likeness
    cut[alike.argsort(stable=True)[:cuts]] = True
    edges = [0, *(cut.nonzero().squeeze(1) + 1).tolist(), len(frames)]
    return list(pairwise(edges))


def join_anchors(values: Tensor, anchors: Tensor, likeness: Tensor, least: float) -> Tensor:
    """Add to each anchor the mean of the tokens that are most like it.

    Args:
        values: tokens, [n, C].
        anchors: tokens that take others in, [m, C].
        likeness: of tokens and anchors, [n, m].
        least: share that an anchor's own value has at least; 1 in 1 + the number that joins it if that is more.

    Returns:
        [m, C].
    """
    joins = likeness.argmax(1)
    sizes = torch.bincount(joins, minlength=len(anchors))
    own = (1 / (sizes + 1)).clamp(min=least)[:, None].to(values.dtype)
    return own * anchors + (1 - own) * means(values, joins, len(anchors))


class FastVID(Compressor):
    """Keeps salient tokens of frames, and anchors of segments.

    Args:
        keep: tokens of a frame on average (int), or share of them (float).
        segments: the least number of segments, where there are as many frames.
        likeness: cosine below which neighbouring frames are parted.
        context: share of the kept tokens that are anchors.
        every: one frame of so many in a segment holds anchors.
        anchor: the least share of its own value that an anchor keeps.
    """

    name = "fastvid"
    temporal = True
    newlines = "all"

    def __init__(
        self,
        keep: int | float = 0.1,
        segments: int = 8,
        likeness: float = 0.9,
        context: float = 0.4,
        every: int = 4,
        anchor: float = 0.6,
    ) -> None:
        self.keep = check_keep(keep)
        if segments < 1 or every < 1:
            raise VistokError(f"fastvid needs segments and every from 1, got {segments} and {every}.")
        self.segments, self.likeness, self.context = segments, likeness, context
        self.every, self.anchor = every, anchor

    def needs(self, layers: int) -> Needs:
        return Needs(attention=(layers - 1,))

    def select(self, image: ImageTokens) -> list[Kept]:
        raise VistokError("fastvid compares the frames of a video, and this is a picture: choose another method.")

    def select_frames(self, frames: list[ImageTokens]) -> list[list[Kept]]:
        (count,) = budget(self.keep, frames[0].valid)
        if count == frames[0].valid.shape[1]:
            return [everything(frame) for frame in frames]
        merged = int(count * self.context)
        features = torch.stack([frame.features[0] for frame in frames])  # [T, N, D]
        hidden = torch.stack([frame.hidden[0] for frame in frames])
        seen = torch.stack([frame.attention[frame.layers - 1].saliency()[0].mean(0) for frame in frames])
        salient = seen.argsort(dim=1, descending=True, stable=True)[:, : count - merged]
        rest = torch.ones_like(seen, dtype=torch.bool).scatter_(1, salient, False)
        kept = [(places, hidden[i][places]) for i, places in enumerate(salient)]
        for first, end in segments(features.mean(1), self.segments - 1, self.likeness):
            holders = [i for i in range(first, end) if (end - 1 - i) % self.every == 0]
            share = min(merged * (end - first) // len(holders), int(rest[first].sum()))
            inside = rest[first:end]
            unit = F.normalize(features[first:end][inside].float(), dim=-1)
            for i in holders if share else []:
                others = rest[i].nonzero().squeeze(1)
                scores, _ = peak_scores(features[i][others], NEIGHBOURS)
                places = others[scores.argsort(descending=True, stable=True)[:share]]
                likeness = unit @ F.normalize(features[i][places].float(), dim=-1).T
                anchors = join_anchors(hidden[first:end][inside], hidden[i][places], likeness, self.anchor)
                kept[i] = torch.cat([kept[i][0], places]), torch.cat([kept[i][1], anchors])
        return [[Kept(places, tokens)] for places, tokens in kept]
