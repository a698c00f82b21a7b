"""What every quantizer takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Quantized(NamedTuple):
    """What a quantizer returns in a training pass.

    Attributes:
        latents: quantized latents that pass gradients on to the input, same shape as the input.
        indices: int64; [B, ...], with one more dimension where a latent has several indices.
        codebook_loss: moves codes towards latents.
        commitment_loss: moves latents towards codes, weight included.
        entropy_loss: spreads the use of codes, weight included.
    """

    latents: Tensor
    indices: Tensor
    codebook_loss: Tensor
    commitment_loss: Tensor
    entropy_loss: Tensor

    @property
    def loss(self) -> Tensor:
        """Sum of the three losses."""
        return self.codebook_loss + self.commitment_loss + self.entropy_loss


class Quantizer(nn.Module, ABC):
    """Latents [B, D, ...] <-> indices [B, ...].

    Attributes:
        size: number of codes K; indices are in [0, K).
        dim: width D of a latent.
    """

    size: int
    dim: int

    def forward(self, z: Tensor) -> Quantized:
        """Quantize latents [B, D, ...] for training, always in float32."""
        with torch.autocast(z.device.type, enabled=False):
            return self._quantize(z.float())

    @abstractmethod
    def _quantize(self, z: Tensor) -> Quantized: ...

    @abstractmethod
    def indices(self, z: Tensor) -> Tensor:
        """Indices of latents [B, D, ...], int64 [B, ...]."""

    @abstractmethod
    def codes(self, indices: Tensor) -> Tensor:
        """Codes of indices [...], [..., D]."""


class NearestCode(Quantizer):
    """Base of quantizers that give a latent the nearest of K codes.

    Attributes:
        codebook: the codes as they are compared and looked up, [K, D].
        spherical: latents and codes are compared on the unit sphere.
    """

    codebook: Tensor
    spherical: bool

    def _flatten(self, z: Tensor) -> Tensor:
        """Latents [B, D, ...] as they are compared, [B, ..., D]."""
        z = z.movedim(1, -1)
        return F.normalize(z, dim=-1) if self.spherical else z

    def indices(self, z: Tensor) -> Tensor:
        """Nearest codes of latents [B, D, ...] (lowest index on ties), int64 [B, ...]."""
        z = self._flatten(z.float())
        return squared_distances(z, self.codebook.float()).argmin(1).view(z.shape[:-1])

    def codes(self, indices: Tensor) -> Tensor:
        """Codes of indices [...], [..., D]."""
        return F.embedding(indices, self.codebook)


def squared_distances(z: Tensor, codebook: Tensor) -> Tensor:
    """Squared distances of z [..., D] to every code of [K, D], [N, K]."""
    z = z.reshape(-1, z.shape[-1])
    return z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.t()


def entropy_gap(affinity: Tensor, temperature: float = 0.01) -> Tensor:
    """Mean entropy of the single assignments minus the entropy of their mean; low when decisions are sharp and codes
    evenly used.

    Args:
        affinity: [N, K], larger is closer.
        temperature: of the softmax that turns affinities into assignments.
    """
    logits = affinity / temperature
    p = logits.softmax(-1)
    mean = p.mean(0)
    of_mean = -(mean * (mean + 1e-5).log()).sum()
    return -(p * logits.log_softmax(-1)).sum(-1).mean() - of_mean
