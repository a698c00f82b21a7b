"""The law that a variational autoencoder gives the latents of a picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """A diagonal Gaussian over latents.

    Attributes:
        mean, logvar: [B, D, ...].
    """

    mean: Tensor
    logvar: Tensor

    @classmethod
    def of(cls, moments: Tensor) -> Posterior:
        """Returns the law of means and log variances [B, 2 D, ...] as encoders give them; the latter are clamped."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(*LOGVAR_RANGE))

    @property
    def std(self) -> Tensor:
        """Standard deviations [B, D, ...]."""
        return (0.5 * self.logvar).exp()

    def sample(self, noise: Tensor | None = None) -> Tensor:
        """Returns a draw [B, D, ...] from standard normal ``noise``, which is fresh if None."""
        return self.mean + self.std * (torch.randn_like(self.mean) if noise is None else noise)

    def kl_terms(self) -> Tensor:
        """Returns what each latent adds to the divergence from the standard normal law, in nats, [B, D, ...]."""
        return 0.5 * (self.mean.square() + self.logvar.exp() - 1 - self.logvar)

    def kl(self) -> Tensor:
        """Returns the divergence from the standard normal law in nats, summed over a picture, [B]."""
        return self.kl_terms().flatten(1).sum(1)
