"""Guided selection that leaves no part of the picture empty, for questions about places (ours; no paper).

Referring tasks collapse under pruning because whole regions vanish. A share of the budget goes to the best token of
each cell of a coarse grid, the rest to the best tokens anywhere. Meant with ``positions="original"``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import ImageTokens, Kept, budget, top_tokens
from vistok.projectors.methods.vtc_cls import VtcCls


def cell_of_patch(grid: tuple[int, int], cells: int) -> Tensor:
    """Cell of each patch when a grid is cut in about ``cells`` near-square cells, at most ``cells``, int64 [N]."""
    rows, cols = grid
    down = min(rows, max(1, math.floor(math.sqrt(cells * rows / cols))))
    across = min(cols, max(1, cells // down))
    row = torch.arange(rows) * down // rows
    col = torch.arange(cols) * across // cols
    return (row[:, None] * across + col[None, :]).flatten()


class Coverage(VtcCls):
    """VTC-CLS scores with spatial coverage.

    Args:
        keep: tokens of a view (int), or share of them (float).
        share: part of the budget spread over the picture, 0..1.
        start: first layer of the ensemble, as in :class:`VtcCls`.
    """

    name = "coverage"

    def __init__(self, keep: int | float = 0.25, share: float = 0.5, start: int | None = None) -> None:
        super().__init__(keep, start)
        if not 0.0 <= share <= 1.0:
            raise VistokError(f"share is {share}: give a number from 0 to 1.")
        self.share = share

    def select(self, image: ImageTokens) -> list[Kept]:
        counts = budget(self.keep, image.valid)
        scores = self.scores(image).masked_fill(~image.valid, -torch.inf)
        lifted = [
            self._lift(row, valid, image.grid, count)
            for row, valid, count in zip(scores, image.valid, counts, strict=True)
        ]
        return [Kept(index) for index in top_tokens(torch.stack(lifted), counts, image.valid)]

    def _lift(self, scores: Tensor, valid: Tensor, grid: tuple[int, int], count: int) -> Tensor:
        """Scores with the best valid token of every cell raised above all others."""
        cells = int(count * self.share)
        if cells == 0:
            return scores
        cell = cell_of_patch(grid, cells).to(scores.device)
        best = scores.new_full((int(cell[-1]) + 1,), -torch.inf).scatter_reduce(0, cell, scores, "amax")
        champion = (scores == best[cell]) & valid
        return scores + champion * (2 * scores[valid].abs().max() + 1)
