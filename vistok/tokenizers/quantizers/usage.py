"""How evenly a codebook is used, over any number of batches."""

from __future__ import annotations

import torch
from torch import Tensor


class CodebookUsage:
    """Counts of every code.

    Args:
        size: number of codes K.
        device: where the counts live; indices are counted there without a host sync.

    Attributes:
        counts: int64 [K].
    """

    def __init__(self, size: int, device: torch.device | str = "cpu"):
        self.counts = torch.zeros(size, dtype=torch.long, device=device)

    def update(self, indices: Tensor) -> None:
        """Count indices of any shape."""
        flat = indices.flatten().to(self.counts.device)
        self.counts.scatter_add_(0, flat, torch.ones_like(flat))

    def reset(self) -> None:
        """Begin anew."""
        self.counts.zero_()

    @property
    def usage(self) -> float:
        """Share of codes that occurred, in [0, 1]."""
        return (self.counts > 0).double().mean().item()

    @property
    def perplexity(self) -> float:
        """Exponential of the entropy: as many equally frequent codes would be as even; 0 before the first update."""
        total = self.counts.sum()
        if not total:
            return 0.0
        return torch.special.entr(self.counts.double() / total).sum().exp().item()

    @property
    def dead(self) -> Tensor:
        """Codes that did not occur, int64 [n]."""
        return (self.counts == 0).nonzero()[:, 0]
