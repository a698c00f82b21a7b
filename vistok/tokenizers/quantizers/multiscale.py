"""Multi-scale residual quantization of feature maps (VAR, Tian et al., arXiv 2404.02905; TokenFlow, arXiv
2412.03069).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.quantizers.base import Quantized, Quantizer


class PhiConvs(nn.ModuleList):
    """VAR's smoothing of an upsampled code: h <- (1 - ratio) h + ratio conv(h), with a few convolutions shared by all
    scales.

    Args:
        dim: channels.
        count: convolutions; scale s of S takes the one whose place in [0, 1] is nearest to s / (S - 1).
        ratio: weight of the convolution.
    """

    def __init__(self, dim: int, count: int = 4, ratio: float = 0.5):
        super().__init__(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(count))
        self.ratio = ratio
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        self.places = torch.linspace(margin, 1 - margin, count, dtype=torch.float64).tolist()

    def forward(self, code: Tensor, position: float) -> Tensor:
        """Smooth a code map [B, D, n, n] of the scale at ``position`` in [0, 1]."""
        nearest = min(range(len(self)), key=lambda i: abs(self.places[i] - position))
        return code.lerp(self[nearest](code), self.ratio)


class MultiScaleQuantizer(Quantizer):
    """A square map is quantized coarse to fine: each scale quantizes what the sum of the coarser ones left over.

    Tokens are the scales one after another, row-major within a scale. Any whole number of first scales decodes.
    The residual is not normalised; losses are means over scales of the inner quantizer's (as in TokenFlow; VAR compares
    running sums with the map instead).

    Args:
        quantizer: shared by all scales.
        scales: sides, increasing; the last is that of the map.
        phi: smooths upsampled codes, or None.
        downsample, upsample: modes of ``F.interpolate``.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        scales: Sequence[int],
        phi: PhiConvs | None = None,
        downsample: str = "area",
        upsample: str = "bicubic",
    ):
        super().__init__()
        self.inner, self.phi = quantizer, phi
        self.scales = tuple(scales)
        self.size, self.dim = quantizer.size, quantizer.dim
        self.downsample, self.upsample = downsample, upsample
        self.lengths = tuple(accumulate(side * side for side in self.scales))  # tokens up to each scale

    def _shrink(self, x: Tensor, side: int) -> Tensor:
        return x if x.shape[-1] == side else F.interpolate(x, (side, side), mode=self.downsample)

    def _grow(self, code: Tensor, scale: int, side: int) -> Tensor:
        if code.shape[-1] != side:
            code = F.interpolate(code, (side, side), mode=self.upsample)
        if self.phi is None:
            return code
        return self.phi(code, scale / max(len(self.scales) - 1, 1))

    def residuals(self, z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What the quantizer sees of maps [B, D, n, n] at each scale, [B, D, side, side], and its indices."""
        z = z.float()
        for scale, side in enumerate(self.scales):
            rest = self._shrink(z, side)
            index = self.inner.indices(rest)
            z = z - self._grow(self.inner.codes(index).movedim(-1, 1), scale, z.shape[-1])
            yield rest, index

    def indices(self, z: Tensor) -> Tensor:
        """Indices of maps [B, D, n, n], int64 [B, L]."""
        return torch.cat([index.flatten(1) for _, index in self.residuals(z)], 1)

    def split(self, indices: Tensor) -> list[Tensor]:
        """Tokens [B, l] by scale, each [B, side, side].

        Raises:
            VistokError: ``l`` does not end with a scale.
        """
        length = indices.shape[1]
        if length not in self.lengths:
            raise VistokError(f"{length} tokens end within a scale; give {', '.join(map(str, self.lengths))}.")
        sides = self.scales[: self.lengths.index(length) + 1]
        parts = indices.split([side * side for side in sides], 1)
        return [part.unflatten(1, (side, side)) for part, side in zip(parts, sides, strict=True)]

    def partial_maps(self, indices: Tensor) -> list[Tensor]:
        """The sum of codes after every scale that tokens [B, l] hold, each [B, D, n, n]."""
        side = self.scales[-1]
        grown = (
            self._grow(self.inner.codes(part).movedim(-1, 1), scale, side)
            for scale, part in enumerate(self.split(indices))
        )
        return list(accumulate(grown))

    def codes(self, indices: Tensor) -> Tensor:
        """The map of tokens [B, l], channels last: [B, n, n, D]."""
        return self.partial_maps(indices)[-1].movedim(1, -1)

    def scale_steps(self, z: Tensor, kept: Sequence[int] | None = None) -> list[tuple[Quantized, Tensor]]:
        """A training pass of maps [B, D, n, n]: what each scale's quantizer gives, and its code map [B, D, n, n]."""
        rest, steps = z, []
        for scale in range(len(self.scales)) if kept is None else kept:
            step = self.inner(self._shrink(rest, self.scales[scale]))
            grown = self._grow(step.latents, scale, z.shape[-1])
            rest = rest - grown.detach()
            steps.append((step, grown))
        return steps

    def _quantize(self, z: Tensor, kept: Sequence[int] | None = None) -> Quantized:
        steps, maps = zip(*self.scale_steps(z, kept), strict=True)
        losses = (sum(getattr(step, name) for step in steps) / len(steps) for name in Quantized._fields[2:])
        return Quantized(sum(maps), torch.cat([step.indices.flatten(1) for step in steps], 1), *losses)

    def quantize_with_scale_drop(self, z: Tensor, generator: torch.Generator, probability: float = 0.1) -> Quantized:
        """A training pass in which, with some probability, one scale other than the first is left out (TokenFlow)."""
        kept = list(range(len(self.scales)))
        if len(kept) > 1 and torch.rand((), generator=generator) < probability:
            kept.pop(int(torch.randint(1, len(kept), (), generator=generator)))
        with torch.autocast(z.device.type, enabled=False):
            return self._quantize(z.float(), kept)
