"""Quantizers: continuous latents to indices of a codebook and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

USAGE_WINDOW = 65536  # recent indices that the published usage figure looks back over


class Quantized(NamedTuple):
    """What a quantizer returns in a training pass.

    Attributes:
        latents: straight-through quantized latents, same shape as the input.
        indices: int64 [B, h, w].
        codebook_loss: moves codes towards latents.
        commitment_loss: moves latents towards codes, weight included.
        entropy_loss: spreads the use of codes, weight included.
    """

    latents: torch.Tensor
    indices: torch.Tensor
    codebook_loss: torch.Tensor
    commitment_loss: torch.Tensor
    entropy_loss: torch.Tensor

    @property
    def loss(self) -> torch.Tensor:
        """Sum of the three losses."""
        return self.codebook_loss + self.commitment_loss + self.entropy_loss


class VectorQuantizer(nn.Module):
    """Nearest-neighbour vector quantization trained by gradient (van den Oord et al., arXiv 1711.00937), as in LlamaGen.

    Codes are stored un-normalised and normalised at every use when ``l2_norm`` is set (Yu et al., arXiv 2110.04627).

    Args:
        size: number of codes K.
        dim: width D of a code.
        l2_norm: compare on the unit sphere.
        commitment: weight beta of the commitment loss.
        entropy: weight of the entropy loss (0 leaves it out).

    The reference registers ``codebook_used`` as a trainable-looking parameter, which breaks training on a CPU; here it is a
    plain buffer of the same name and shape.
    """

    def __init__(self, size: int, dim: int, l2_norm: bool = True, commitment: float = 0.25, entropy: float = 0.0):
        super().__init__()
        self.l2_norm = l2_norm
        self.commitment = commitment
        self.entropy = entropy
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)
        if l2_norm:
            with torch.no_grad():
                self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))
        self.register_buffer("codebook_used", torch.zeros(USAGE_WINDOW))

    @property
    def codebook(self) -> torch.Tensor:
        """Codes as they are compared and looked up, [K, D]."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.l2_norm else weight

    def _flatten(self, z: torch.Tensor) -> torch.Tensor:
        z = z.movedim(1, -1)
        return F.normalize(z, dim=-1) if self.l2_norm else z

    def _distances(self, z: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        """Squared distances of z [..., D] to every code, [N, K]."""
        z = z.reshape(-1, z.shape[-1])
        return z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.t()

    def indices(self, z: torch.Tensor) -> torch.Tensor:
        """Nearest codes of latents [B, D, h, w] (lowest index on ties), int64 [B, h, w]."""
        z = self._flatten(z)
        return self._distances(z, self.codebook).argmin(1).view(z.shape[:-1])

    def codes(self, indices: torch.Tensor) -> torch.Tensor:
        """Codes of indices [...], [..., D]."""
        return F.embedding(indices, self.codebook)

    def forward(self, z: torch.Tensor) -> Quantized:
        """Quantize latents [B, D, h, w] with straight-through gradients, and give the losses.

        Always in float32: half precision cannot tell neighbouring codes apart.
        """
        with torch.autocast(z.device.type, enabled=False):
            return self._quantize(z.float())

    def _quantize(self, z: torch.Tensor) -> Quantized:
        z = self._flatten(z)
        codebook = self.codebook
        distances = self._distances(z, codebook)
        index = distances.argmin(1).view(z.shape[:-1])
        chosen = F.embedding(index, codebook)
        codebook_loss = F.mse_loss(chosen, z.detach())
        commitment_loss = self.commitment * F.mse_loss(z, chosen.detach())
        entropy_loss = z.new_zeros(())
        if self.entropy:
            entropy_loss = self.entropy * entropy_gap(-distances)
        if self.training:
            self._record(index)
        out = (z + (chosen - z).detach()).movedim(-1, 1)
        return Quantized(out, index, codebook_loss, commitment_loss, entropy_loss)

    @torch.no_grad()
    def _record(self, index: torch.Tensor) -> None:
        recent = index.flatten()[-USAGE_WINDOW:].to(self.codebook_used.dtype)
        self.codebook_used.copy_(torch.cat([self.codebook_used[len(recent) :], recent]))

    @torch.no_grad()
    def usage(self) -> float:
        """Share of the codebook among the recent training indices, in [0, 1] (the published figure)."""
        return len(self.codebook_used.unique()) / self.embedding.num_embeddings

    @torch.no_grad()
    def revive(self, z: torch.Tensor, counts: torch.Tensor, generator: torch.Generator) -> int:
        """Move codes that were not used to randomly chosen latents.

        Args:
            z: latents [B, D, h, w] of a current batch.
            counts: uses of each code since the last call, [K].
            generator: source of the choice.

        Returns:
            How many codes were moved.
        """
        dead = (counts == 0).nonzero()[:, 0]
        pool = self._flatten(z).reshape(-1, z.shape[1])
        rows = torch.randint(len(pool), (len(dead),), generator=generator)
        self.embedding.weight[dead] = pool[rows.to(pool.device)].to(self.embedding.weight.dtype)
        return len(dead)


def entropy_gap(affinity: torch.Tensor, temperature: float = 0.01) -> torch.Tensor:
    """Mean entropy of the single assignments minus the entropy of their mean; low when decisions are sharp and codes evenly used.

    Args:
        affinity: [N, K], larger is closer.
        temperature: of the softmax that turns affinities into assignments.
    """
    logits = affinity / temperature
    p = logits.softmax(-1)
    mean = p.mean(0)
    of_mean = -(mean * (mean + 1e-5).log()).sum()
    return -(p * logits.log_softmax(-1)).sum(-1).mean() - of_mean
