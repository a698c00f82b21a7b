"""Two codebooks with shared indices (TokenFlow, Qu et al., arXiv 2412.03069)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.tokenizers.quantizers.base import Quantized, Quantizer
from vistok.tokenizers.quantizers.gradient import straight_through

_CHUNK = 1024  # vectors compared with all codes at a time: memory stays at _CHUNK x K


class SharedQuantizer(Quantizer):
    """One index selects a semantic code and a pixel code; it is the one that is nearest for both at once.

    Each half of a latent is normalised on its own, as are both codebooks at every use, so the summed squared distance
    is smallest where one dot product of the joined vectors is largest.

    Args:
        size: number of codes K.
        semantic_dim, pixel_dim: widths of the halves; latents hold the semantic channels first.
        pixel_weight: of the pixel distance beside the semantic one.
        commitment: weight of the commitment loss.
    """

    def __init__(
        self, size: int, semantic_dim: int, pixel_dim: int, pixel_weight: float = 1.0, commitment: float = 0.25
    ):
        super().__init__()
        self.size, self.dim = size, semantic_dim + pixel_dim
        self.widths = (semantic_dim, pixel_dim)
        self.pixel_weight, self.commitment = pixel_weight, commitment
        self.embedding_vqkd = nn.Embedding(size, semantic_dim)
        self.embedding_vqgan = nn.Embedding(size, pixel_dim)
        for table in (self.embedding_vqkd, self.embedding_vqgan):
            with torch.no_grad():
                table.weight.copy_(F.normalize(table.weight, dim=-1))

    @property
    def codebook(self) -> Tensor:
        """Both codes of every index, each normalised, [K, D]."""
        tables = (self.embedding_vqkd.weight, self.embedding_vqgan.weight)
        return torch.cat([F.normalize(table, dim=-1) for table in tables], -1)

    def _flatten(self, z: Tensor) -> Tensor:
        halves = z.movedim(1, -1).split(self.widths, -1)
        return torch.cat([F.normalize(half, dim=-1) for half in halves], -1)

    def _nearest(self, z: Tensor, codebook: Tensor) -> Tensor:
        semantic, pixel = codebook.split(self.widths, -1)
        weighted = torch.cat([semantic, self.pixel_weight * pixel], -1).t()
        rows = z.reshape(-1, self.dim).split(_CHUNK)
        return torch.cat([(row @ weighted).argmax(1) for row in rows]).view(z.shape[:-1])

    def indices(self, z: Tensor) -> Tensor:
        """Indices of latents [B, D, ...], int64 [B, ...]."""
        return self._nearest(self._flatten(z.float()), self.codebook.float())

    def codes(self, indices: Tensor) -> Tensor:
        """Semantic and pixel code of indices [...], joined: [..., D]."""
        return F.embedding(indices, self.codebook)

    def _quantize(self, z: Tensor) -> Quantized:
        z, codebook = self._flatten(z), self.codebook.float()
        index = self._nearest(z.detach(), codebook.detach())
        chosen = F.embedding(index, codebook)
        codebook_loss = F.mse_loss(chosen, z.detach())
        commitment_loss = self.commitment * F.mse_loss(z, chosen.detach())
        out = straight_through(z, chosen).movedim(-1, 1)
        return Quantized(out, index, codebook_loss, commitment_loss, z.new_zeros(()))

    @torch.no_grad()
    def revive(self, z: Tensor, counts: Tensor, generator: torch.Generator) -> int:
        """Move codes that were not used to randomly chosen latents, both halves from the same one.

        Args:
            z: latents [N, D].
            counts: uses of each code since the last call, [K].
            generator: source of the choice.

        Returns:
            How many codes were moved.
        """
        dead = (counts == 0).nonzero()[:, 0]
        rows = torch.randint(len(z), (len(dead),), generator=generator)
        chosen = self._flatten(z.float())[rows.to(z.device)]
        for table, half in zip((self.embedding_vqkd, self.embedding_vqgan), chosen.split(self.widths, -1), strict=True):
            table.weight[dead] = half.to(table.weight.dtype)
        return len(dead)
