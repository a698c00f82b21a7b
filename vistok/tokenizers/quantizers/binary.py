"""Quantization of each channel to its sign: lookup-free (LFQ, Yu et al., arXiv 2310.05737) and binary spherical (BSQ,
Zhao et al., arXiv 2406.07548).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.tokenizers.quantizers.base import Quantized, Quantizer
from vistok.tokenizers.quantizers.gradient import straight_through

_TABLE_BITS = 14  # the entropy of up to 2**14 codes is exact; of more it is that of groups of bits
_GROUP_BITS = 9


class BinaryQuantizer(Quantizer):
    """D channels give one of 2**D codes, without a codebook. A channel that is exactly 0 counts as negative.

    Assignments are the softmax of 2 * inv_temperature * <z, code>. They factorise over bits, so the entropy of a single
    assignment is a sum over groups of bits, exactly; the entropy of their mean is exact up to 14 bits and beyond that
    its upper bound, the sum over groups of 9.

    Args:
        bits: channels D.
        spherical: latents are projected to the unit sphere and codes are ±1/sqrt(D) (BSQ); else codes are ±1 (LFQ).
        inv_temperature: sharpness of assignments.
        entropy: weight of the entropy loss (0 leaves it out).
        diversity: weight gamma of the entropy of the mean assignment, within the entropy loss.
        commitment: weight of the commitment loss.
        msb_first: the first channel is the most significant bit; else the least significant.
    """

    def __init__(
        self,
        bits: int,
        spherical: bool = False,
        inv_temperature: float = 100.0,
        entropy: float = 0.1,
        diversity: float = 1.0,
        commitment: float = 0.25,
        msb_first: bool = True,
    ):
        super().__init__()
        self.dim, self.size = bits, 2**bits
        self.spherical = spherical
        self.scale = bits**-0.5 if spherical else 1.0
        self.inv_temperature, self.entropy, self.diversity = inv_temperature, entropy, diversity
        self.commitment = commitment
        weights = 2 ** torch.arange(bits)
        self.register_buffer("bit_weights", weights.flip(0) if msb_first else weights, persistent=False)

    def _flatten(self, z: Tensor) -> Tensor:
        z = z.movedim(1, -1)
        return F.normalize(z, dim=-1) if self.spherical else z

    def _index(self, z: Tensor) -> Tensor:
        return ((z > 0) * self.bit_weights).sum(-1)

    def indices(self, z: Tensor) -> Tensor:
        """Indices of latents [B, D, ...], int64 [B, ...]."""
        return self._index(z.movedim(1, -1))

    def codes(self, indices: Tensor) -> Tensor:
        """Codes of indices [...], float32 [..., D]."""
        positive = (indices[..., None] & self.bit_weights) != 0
        return torch.where(positive, self.scale, -self.scale)

    def _quantize(self, z: Tensor) -> Quantized:
        z = self._flatten(z)
        chosen = torch.where(z > 0, self.scale, -self.scale)
        commitment_loss = self.commitment * F.mse_loss(z, chosen)
        entropy_loss = z.new_zeros(())
        if self.entropy:
            single, of_mean = self.entropies(z)
            entropy_loss = self.entropy * (single - self.diversity * of_mean)
        out = straight_through(z, chosen).movedim(-1, 1)
        return Quantized(out, self._index(z), z.new_zeros(()), commitment_loss, entropy_loss)

    def entropies(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of the assignments of latents [..., D] and the entropy of their mean, in nats."""
        groups = [self.dim] if self.dim <= _TABLE_BITS else [_GROUP_BITS] * (self.dim // _GROUP_BITS)
        groups += [self.dim - sum(groups)] if sum(groups) < self.dim else []
        single, of_mean = z.new_zeros(()), z.new_zeros(())
        for part in z.reshape(-1, self.dim).split(groups, dim=1):
            bits = part.shape[1]
            table = (torch.arange(2**bits, device=z.device)[:, None] >> torch.arange(bits, device=z.device)) & 1
            codes = (table * 2 - 1) * self.scale
            p = (2 * self.inv_temperature * part @ codes.t()).softmax(-1)
            single = single + _entropy(p).mean()
            of_mean = of_mean + _entropy(p.mean(0))
        return single, of_mean


def _entropy(p: Tensor) -> Tensor:
    return -(p * p.clamp_min(1e-5).log()).sum(-1)
