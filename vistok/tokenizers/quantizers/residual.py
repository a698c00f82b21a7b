"""Residual vector quantization in depth (Lee et al., arXiv 2203.01941; Zeghidour et al., arXiv 2107.03312)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.quantizers.base import Quantized, Quantizer


class ResidualQuantizer(Quantizer):
    """Every level quantizes what the levels before it left over; the code is the sum, from any number of first levels.

    Args:
        quantizers: one of each level, all of one width and size; the same module may serve several levels.

    Raises:
        VistokError: they differ, or there is none.
    """

    def __init__(self, quantizers: Iterable[Quantizer]):
        super().__init__()
        self.quantizers = nn.ModuleList(quantizers)
        shapes = {(q.size, q.dim) for q in self.quantizers}
        if len(shapes) != 1:
            raise VistokError(f"residual levels need one codebook size and width, got {sorted(shapes) or 'no level'}.")
        ((self.size, self.dim),) = shapes

    def indices(self, z: Tensor) -> Tensor:
        """Indices of latents [B, D, ...] at every level, int64 [B, ..., levels]."""
        found = []
        for quantizer in self.quantizers:
            index = quantizer.indices(z)
            z = z - quantizer.codes(index).movedim(-1, 1)
            found.append(index)
        return torch.stack(found, -1)

    def level_codes(self, indices: Tensor) -> Tensor:
        """Codes of each level of indices [..., levels], [levels, ..., D].

        Raises:
            VistokError: more levels than there are.
        """
        if not 1 <= indices.shape[-1] <= len(self.quantizers):
            raise VistokError(f"got {indices.shape[-1]} residual levels, expected 1 to {len(self.quantizers)}.")
        return torch.stack([q.codes(i) for q, i in zip(self.quantizers, indices.unbind(-1), strict=False)])

    def codes(self, indices: Tensor) -> Tensor:
        """Codes of indices [..., levels], [..., D]; fewer levels than there are give a coarser code."""
        return self.level_codes(indices).sum(0)

    def _quantize(self, z: Tensor) -> Quantized:
        steps, total = [], torch.zeros_like(z)
        for quantizer in self.quantizers:
            step = quantizer(z - total.detach())
            total = total + step.latents
            steps.append(step)
        # Each level's output carries the gradient of z once; only one of them may pass it on.
        latents = z + (total - z).detach()
        losses = (sum(getattr(step, name) for step in steps) for name in Quantized._fields[2:])
        return Quantized(latents, torch.stack([step.indices for step in steps], -1), *losses)
