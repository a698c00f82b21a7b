"""Vector quantization whose codebook is trained by gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.tokenizers.quantizers.base import NearestCode, Quantized, entropy_gap, squared_distances
from vistok.tokenizers.quantizers.gradient import estimator

USAGE_WINDOW = 65536  # recent indices that the published usage figure looks back over


class VectorQuantizer(NearestCode):
    """Nearest-neighbour vector quantization trained by gradient (van den Oord et al., arXiv 1711.00937), as in
    LlamaGen.

    Codes are stored un-normalised and normalised at every use when ``l2_norm`` is set (Yu et al., arXiv 2110.04627).

    Args:
        size: number of codes K.
        dim: width D of a code.
        l2_norm: compare on the unit sphere.
        commitment: weight beta of the commitment loss.
        codebook: weight of the codebook loss; taming's first version, which SEED keeps, has beta here and 1 there.
        entropy: weight of the entropy loss (0 leaves it out).
        usage_window: recent training indices to keep in the buffer ``codebook_used``; 0 for checkpoints without it.
        gradient: ``straight_through`` or ``rotation``.

    The reference registers ``codebook_used`` as a trainable-looking parameter, which breaks training on a CPU; here
    it is a plain buffer of the same name and shape.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        l2_norm: bool = True,
        commitment: float = 0.25,
        entropy: float = 0.0,
        usage_window: int = USAGE_WINDOW,
        gradient: str = "straight_through",
        codebook: float = 1.0,
    ):
        super().__init__()
        self.size, self.dim = size, dim
        self.spherical = l2_norm
        self.commitment, self.codebook_weight = commitment, codebook
        self.entropy = entropy
        self.estimate = estimator(gradient)
        self.embedding = nn.Embedding(size, dim)
        nn.init.uniform_(self.embedding.weight, -1 / size, 1 / size)
        if l2_norm:
            with torch.no_grad():
                self.embedding.weight.copy_(F.normalize(self.embedding.weight, dim=-1))
        if usage_window:
            self.register_buffer("codebook_used", torch.zeros(usage_window))

    @property
    def codebook(self) -> Tensor:
        """Codes as they are compared and looked up, [K, D]."""
        weight = self.embedding.weight
        return F.normalize(weight, dim=-1) if self.spherical else weight

    def _quantize(self, z: Tensor) -> Quantized:
        z = self._flatten(z)
        codebook = self.codebook.float()
        distances = squared_distances(z, codebook)
        index = distances.argmin(1).view(z.shape[:-1])
        chosen = F.embedding(index, codebook)
        codebook_loss = self.codebook_weight * F.mse_loss(chosen, z.detach())
        commitment_loss = self.commitment * F.mse_loss(z, chosen.detach())
        entropy_loss = z.new_zeros(())
        if self.entropy:
            entropy_loss = self.entropy * entropy_gap(-distances)
        if self.training:
            self._record(index)
        out = self.estimate(z, chosen).movedim(-1, 1)
        return Quantized(out, index, codebook_loss, commitment_loss, entropy_loss)

    @torch.no_grad()
    def _record(self, index: Tensor) -> None:
        if not hasattr(self, "codebook_used"):
            return
        recent = index.flatten()[-len(self.codebook_used) :].to(self.codebook_used.dtype)
        self.codebook_used.copy_(torch.cat([self.codebook_used[len(recent) :], recent]))

    @torch.no_grad()
    def usage(self) -> float:
        """Share of the codebook among the recent training indices, in [0, 1] (the published figure)."""
        return len(self.codebook_used.unique()) / self.embedding.num_embeddings

    @torch.no_grad()
    def revive(self, z: Tensor, counts: Tensor, generator: torch.Generator) -> int:
        """Move codes that were not used to randomly chosen latents.

        Args:
            z: latents [B, D, ...] of a current batch.
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
