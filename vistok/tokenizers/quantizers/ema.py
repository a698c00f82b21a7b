"""Vector quantization whose codebook follows the latents by exponential moving averages (arXiv 1711.00937, appendix
A.1).
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from vistok.tokenizers.quantizers.base import NearestCode, Quantized, squared_distances
from vistok.tokenizers.quantizers.gradient import estimator


class EMAQuantizer(NearestCode):
    """Codes are running means of the latents that chose them, so the codebook needs no gradient and no optimizer.

    Indices and codes of a batch are those before its update. Counts and sums are summed over all processes before they
    are used, so that every process holds the same codebook.

    Args:
        size: number of codes K.
        dim: width D of a code.
        decay: of the moving averages.
        cosine: latents and codes lie on the unit sphere; a code is the normalised running mean.
        commitment: weight of the commitment loss.
        smoothing: added to every count, so that unused codes keep a finite mean.
        gradient: ``straight_through`` or ``rotation``.

    Buffers:
        codebook [K, D]; counts [K] and sums [K, D], the moving averages.
    """

    def __init__(
        self,
        size: int,
        dim: int,
        decay: float = 0.99,
        cosine: bool = False,
        commitment: float = 0.25,
        smoothing: float = 1e-5,
        gradient: str = "straight_through",
    ):
        super().__init__()
        self.size, self.dim = size, dim
        self.decay, self.spherical, self.commitment, self.smoothing = decay, cosine, commitment, smoothing
        self.estimate = estimator(gradient)
        codebook = torch.randn(size, dim)
        self.register_buffer("codebook", F.normalize(codebook, dim=-1) if cosine else codebook)
        self.register_buffer("counts", torch.ones(size))
        self.register_buffer("sums", self.codebook.clone())

    def _quantize(self, z: Tensor) -> Quantized:
        z, codebook = self._flatten(z), self.codebook.float()
        index = squared_distances(z.detach(), codebook).argmin(1).view(z.shape[:-1])
        chosen = F.embedding(index, codebook)
        commitment_loss = self.commitment * F.mse_loss(z, chosen)
        out = self.estimate(z, chosen).movedim(-1, 1)
        if self.training:
            self._update(z.detach().reshape(-1, self.dim), index.flatten())
        zero = z.new_zeros(())
        return Quantized(out, index, zero, commitment_loss, zero)

    @torch.no_grad()
    def _update(self, z: Tensor, index: Tensor) -> None:
        """Take latents [N, D] and their codes [N] into the averages."""
        counts = torch.zeros_like(self.counts).index_add_(0, index, torch.ones_like(self.counts[index]))
        sums = torch.zeros_like(self.sums).index_add_(0, index, z.to(self.sums.dtype))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        total = self.counts.sum()
        smoothed = (self.counts + self.smoothing) / (total + self.size * self.smoothing) * total
        means = self.sums / smoothed[:, None]
        # A new tensor: autograd may still hold the codes of this batch.
        self.codebook = F.normalize(means, dim=-1) if self.spherical else means

    @torch.no_grad()
    def revive(self, z: Tensor, threshold: float, generator: torch.Generator) -> int:
        """Move codes whose running count is below a threshold to randomly chosen latents, with that count.

        Args:
            z: latents [B, D, ...] of a current batch; the first process's are taken by all.
            threshold: running count below which a code is dead.
            generator: source of the choice.

        Returns:
            How many codes were moved.
        """
        dead = (self.counts < threshold).nonzero()[:, 0]
        pool = self._flatten(z.float()).reshape(-1, self.dim)
        rows = torch.randint(len(pool), (len(dead),), generator=generator)
        moved = pool[rows.to(pool.device)]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(moved, src=0)
        self.codebook = self.codebook.index_copy(0, dead, moved)
        self.counts[dead] = threshold
        self.sums[dead] = moved * threshold
        return len(dead)
