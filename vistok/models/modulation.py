"""Modulation of blocks by a condition, as in diffusion transformers (arXiv 2212.09748)."""

from __future__ import annotations

from torch import nn


def modulation(width: int, count: int, rank: int) -> nn.Sequential:
    """Returns the map from conditions [..., width] to ``count`` modulations of a block, [..., count * width].

    Args:
        width: of conditions and block.
        count: scales, shifts and gates.
        rank: dimensions of the conditions from which they are made; 0 is all, as published.
    """
    narrow = [nn.Linear(width, rank, bias=False)] if rank else []
    return nn.Sequential(nn.SiLU(), *narrow, nn.Linear(rank or width, count * width))
