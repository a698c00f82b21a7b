"""How many first tokens are kept in training, so that every prefix learns to decode.

One-D-Piece's Tail Token Drop (arXiv 2501.10064) draws one count for a batch from ``uniform``; FlexTok's nested dropout
(arXiv 2502.13967) draws one for each picture, from ``uniform``, ``pow2`` or ``uniform_pow2``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import unknown_name

LAWS = ("uniform", "pow2", "uniform_pow2")


def sample_lengths(law: str, maximum: int, count: int, generator: torch.Generator) -> Tensor:
    """Draw how many first tokens to keep.

    Args:
        law: ``uniform`` over 1 to ``maximum``; ``pow2``, uniform over 1, 2, 4, ... and ``maximum``; ``uniform_pow2``,
            uniform and then rounded up to a power of two (at most ``maximum``).
        maximum: all tokens.
        count: how many draws.
        generator: source of the draws, on the CPU.

    Returns:
        int64 [count] on the CPU.

    Raises:
        VistokError: unknown law.
    """
    if law == "uniform":
        return torch.randint(1, maximum + 1, (count,), generator=generator)
    powers = torch.tensor(sorted({2**i for i in range((maximum - 1).bit_length())} | {maximum}))
    if law == "pow2":
        return powers[torch.randint(len(powers), (count,), generator=generator)]
    if law == "uniform_pow2":
        drawn = torch.randint(1, maximum + 1, (count,), generator=generator)
        return powers[torch.searchsorted(powers, drawn)]
    raise unknown_name("length law", law, list(LAWS))
