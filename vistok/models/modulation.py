"""Modulation of blocks by a condition, as in diffusion transformers (arXiv 2212.09748)."""

from __future__ import annotations

from torch import nn


def modulation(width: int, count: int, rank: int = 0) -> nn.Sequential:
    """Returns the map from conditions [..., width] to modulations of a block, [..., count * width], zero at first.

    Args:
        width: of conditions and block.
        count: scales, shifts and gates.
        rank: dimensions of the conditions from which they are made; 0 is all, as published.
    """
    narrow = [nn.Linear(width, rank, bias=False)] if rank else []
    last = nn.Linear(rank or width, count * width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.SiLU(), *narrow, last)
