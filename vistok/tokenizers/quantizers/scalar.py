"""Finite scalar quantization (Mentzer et al., arXiv 2309.15505)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.tokenizers.quantizers.base import Quantized, Quantizer


class FSQ(Quantizer):
    """Each channel is bounded and rounded to one of a few levels; the codebook is their product and has no weights.

    The first channel is the least significant digit of an index. With the published bound an even number of levels
    gives the values -1 ... 1 - 2/L. Digits are rounded on the way back to an index: a plain cast is off by one where
    L // 2 is no power of two.

    Args:
        levels: L of each channel, at least 3 (2 with ``symmetric``).
        eps: by which the bound is wider than the outermost levels.
        symmetric: L equidistant values from -1 to 1 by rounding (L - 1)(tanh z + 1) / 2, as Stable Audio's tokenizers
            do (arXiv 2411.19842), instead of the published bound.

    Raises:
        VistokError: too few levels.
    """

    def __init__(self, levels: Sequence[int], eps: float = 1e-3, symmetric: bool = False):
        super().__init__()
        fewest = 2 if symmetric else 3
        if not levels or min(levels) < fewest:
            more = "" if symmetric else ", or take the symmetric form for 2"
            raise VistokError(f"FSQ levels {list(levels)} are too few: every channel needs at least {fewest}{more}.")
        self.levels = tuple(levels)
        self.dim, self.size = len(levels), math.prod(levels)
        self.eps, self.symmetric = eps, symmetric
        count = torch.tensor(self.levels)
        basis = torch.cat([torch.ones(1, dtype=torch.long), count[:-1].cumprod(0)])
        self.register_buffer("count", count, persistent=False)  # whole numbers, which no cast of a model rounds
        self.register_buffer("basis", basis, persistent=False)

    @property
    def centre(self) -> Tensor:
        """The middle of each channel's levels, float32 [D]."""
        return (self.count - 1) / 2 if self.symmetric else (self.count // 2).float()

    def _bounded(self, z: Tensor) -> Tensor:
        """Channels-last latents to values that round to levels; 0 is the middle one."""
        if self.symmetric:
            return (self.count - 1) * z.tanh() / 2
        half = (self.count - 1) * (1 + self.eps) / 2
        offset = 0.5 * (self.count % 2 == 0)
        return (z + (offset / half).atanh()).tanh() * half - offset

    def _rounded(self, bounded: Tensor) -> Tensor:
        if not self.symmetric:
            return bounded.round()
        return (bounded + self.centre + 0.5).floor() - self.centre

    def _index(self, rounded: Tensor) -> Tensor:
        digits = (rounded + self.centre).round().long()
        return (digits * self.basis).sum(-1)

    def indices(self, z: Tensor) -> Tensor:
        """Indices of latents [B, D, ...], int64 [B, ...]."""
        return self._index(self._rounded(self._bounded(z.float().movedim(1, -1))))

    def index_of(self, codes: Tensor) -> Tensor:
        """Indices of codes [..., D], int64 [...]: the inverse of ``codes``."""
        return self._index(codes.float() * self.centre)

    def codes(self, indices: Tensor) -> Tensor:
        """Codes of indices [...], float32 [..., D]."""
        digits = indices[..., None] // self.basis % self.count
        return (digits - self.centre) / self.centre

    def _quantize(self, z: Tensor) -> Quantized:
        bounded = self._bounded(z.movedim(1, -1))
        rounded = self._rounded(bounded.detach())
        codes = (bounded + (rounded - bounded).detach()) / self.centre
        zero = z.new_zeros(())
        return Quantized(codes.movedim(-1, 1), self._index(rounded), zero, zero, zero)
