"""HoliTom (arXiv 2505.21334), before the language model: windows in which most places stand still, and merging.

A dynamic programme parts a video into windows so that most tokens are saved by telling static places, those alike from
frame to frame throughout a window, once: their mean over time, in the window's first frame, merged by density peaks. Of
the other tokens of each frame those stay that the tower attends to most, and density peaks of the rest. Differs from
the release: at least one static token of a window stays, salience is the mean attention received where a tower has no
CLS token, tokens stand in raster order of their frames, and ties go by order, not by noise. The merging inside the
language model is not part of this.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import Compressor, ImageTokens, Kept, Needs, budget, check_keep, everything
from vistok.projectors.methods.density_peaks import cluster, means

NEIGHBOURS = 7
OWN = 0.6  # share of its own value that a centre keeps


def best_windows(alike: Tensor) -> tuple[list[tuple[int, int]], int]:
    """Windows of a video that save most tokens.

    Args:
        alike: whether a token is like the one at its place in the next frame, bool [T - 1, N].

    Returns:
        First frame and the one behind the last of each window, and the number of tokens saved.
    """
    count = len(alike) + 1
    saved, opens = [0], [0]  # of the first i frames: tokens, and where their last window begins
    for end in range(1, count + 1):
        most, first = saved[end - 1], end - 1
        still = torch.ones_like(alike[0])
        for start in range(end - 2, -1, -1):
            still = still & alike[start]
            value = saved[start] + int(still.sum()) * (end - 1 - start)
            if value > most:
                most, first = value, start
        saved.append(most)
        opens.append(first)
    windows, end = [], count
    while end:
        windows.append((opens[end], end))
        end = opens[end]
    return windows[::-1], saved[-1]


def merged_peaks(features: Tensor, hidden: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Density peaks of tokens, each with the mean of the tokens nearest to it mixed in.

    Args:
        features: what distances are measured on, [n, D].
        hidden: tokens, [n, C].
        count: of peaks, 0..n.

    Returns:
        Which they are, ascending, int64 [count], and [count, C].
    """
    if count == 0:
        return torch.zeros(0, dtype=torch.int64, device=hidden.device), hidden[:0]
    centres, owner = cluster(features, count, min(NEIGHBOURS, count))
    others = torch.ones(len(hidden), dtype=torch.bool, device=hidden.device)
    others[centres] = False
    alone = torch.bincount(owner[others], minlength=count) == 0
    mixed = OWN * hidden[centres] + (1 - OWN) * means(hidden[others], owner[others], count)
    return centres, torch.where(alone[:, None], hidden[centres], mixed)


class HoliTom(Compressor):
    """Tells what stands still in a window of frames once, and keeps what is salient of the rest.

    Args:
        keep: tokens of a frame on average (int), or share of all (float), static places counted once.
        likeness: cosine from frame to frame above which a place stands still.
        density: share of the kept tokens that are not static which density peaks take; the rest is by attention.
    """

    name = "holitom"
    temporal = True
    newlines = "all"

    def __init__(self, keep: int | float = 0.15, likeness: float = 0.8, density: float = 0.0) -> None:
        self.keep, self.likeness = check_keep(keep), likeness
        if not 0 <= density <= 1:
            raise VistokError(f"density is {density!r}: give a share of the kept tokens from 0 to 1.")
        self.density = density

    def needs(self, layers: int) -> Needs:
        return Needs(attention=(layers - 1,))

    def select(self, image: ImageTokens) -> list[Kept]:
        raise VistokError("holitom compares the frames of a video, and this is a picture: choose another method.")

    def select_frames(self, frames: list[ImageTokens]) -> list[list[Kept]]:
        features = torch.stack([frame.features[0] for frame in frames])  # [T, N, D]
        hidden = torch.stack([frame.hidden[0] for frame in frames])
        count, tokens = features.shape[:2]
        share = self.keep if isinstance(self.keep, float) else budget(self.keep, frames[0].valid)[0] / tokens
        if share == 1.0:
            return [everything(frame) for frame in frames]
        seen = torch.stack([frame.attention[frame.layers - 1].saliency()[0].mean(0) for frame in frames])
        alike = F.cosine_similarity(features[:-1].float(), features[1:].float(), dim=-1) > self.likeness
        windows, saved = best_windows(alike) if count > 1 else ([(0, 1)], 0)
        share = min(share * count * tokens / (count * tokens - saved), 1.0)
        kept = []
        for first, end in windows:
            still = alike[first : end - 1].all(0) if end - first > 1 else torch.zeros_like(seen[0], dtype=torch.bool)
            for i in range(first, end):
                parts = [self._moving(features[i], hidden[i], seen[i], (~still).nonzero().squeeze(1), share)]
                if i == first and bool(still.any()):
                    places = still.nonzero().squeeze(1)
                    once, whole = (x[first:end, places].mean(0) for x in (features, hidden))
                    peaks, merged = merged_peaks(once, whole, max(1, round(len(places) * share)))
                    parts.append((places[peaks], merged))
                kept.append([Kept(*(torch.cat(part) for part in zip(*parts, strict=True)))])
        return kept

    def _moving(
        self, features: Tensor, hidden: Tensor, seen: Tensor, places: Tensor, share: float
    ) -> tuple[Tensor, Tensor]:
        """The tokens that stay of those of a frame that are not static."""
        count = math.ceil(len(places) * share)
        salient = round(count * (1 - self.density))
        order = seen[places].argsort(descending=True, stable=True)
        best, rest = places[order[:salient]], places[order[salient:].sort().values]
        peaks, merged = merged_peaks(features[rest], hidden[rest], count - salient)
        return torch.cat([best, rest[peaks]]), torch.cat([hidden[best], merged])
