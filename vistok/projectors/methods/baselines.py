"""Baselines that look at no content: tokens on a regular lattice, and tokens at random."""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.projectors.interface import Compressor, ImageTokens, Kept, budget, check_keep


def lattice(rows: int, cols: int, count: int) -> Tensor:
    """``count`` cells spread evenly over a grid: rows of near-equal spacing, ascending int64 [count].

    Args:
        rows, cols: the grid.
        count: 1..rows*cols.
    """
    lines = min(rows, max(-(-count // cols), round((count * rows / cols) ** 0.5)))
    i = torch.arange(count)
    line = i * lines // count
    first = -(-line * count // lines)
    length = -(-(line + 1) * count // lines) - first
    row = (2 * line + 1) * rows // (2 * lines)
    col = (2 * (i - first) + 1) * cols // (2 * length)
    return row * cols + col


class Uniform(Compressor):
    """Keep tokens on a lattice over the part of each view that shows picture.

    Args:
        keep: tokens of a view (int), or share of them (float).
    """

    name = "uniform"

    def __init__(self, keep: int | float = 0.25) -> None:
        self.keep = check_keep(keep)

    def select(self, image: ImageTokens) -> list[Kept]:
        kept = []
        for valid, count in zip(image.valid, budget(self.keep, image.valid), strict=True):
            rows = int(valid.view(image.grid).any(1).sum())  # what shows picture is a rectangle
            places = valid.nonzero().squeeze(1)
            cols = places.numel() // max(rows, 1)
            kept.append(Kept(places[lattice(rows, cols, count).to(places.device)] if count else places))
        return kept


class Random(Compressor):
    """Keep tokens drawn at random: the same ones of every picture of a size for a seed, whatever the batch.

    Args:
        keep: tokens of a view (int), or share of them (float).
        seed: of the draw; average over several for a fair baseline.
    """

    name = "random"

    def __init__(self, keep: int | float = 0.25, seed: int = 0) -> None:
        self.keep = check_keep(keep)
        self.seed = seed

    def select(self, image: ImageTokens) -> list[Kept]:
        generator = torch.Generator().manual_seed(self.seed)
        kept = []
        for valid, count in zip(image.valid, budget(self.keep, image.valid), strict=True):
            places = valid.nonzero().squeeze(1)
            drawn = torch.randperm(places.numel(), generator=generator)[:count].sort().values
            kept.append(Kept(places[drawn.to(places.device)]))
        return kept
