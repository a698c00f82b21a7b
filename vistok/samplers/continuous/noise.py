"""The random numbers of continuous samplers, addressed by seed, sample, token position, purpose and step.

A token's start and its noise do not depend on who asks for them or when, so a draft and its target share them
(trajectory alignment), and a picture does not depend on its batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.ops.noise import counter_normal, counter_uniform
from vistok.samplers.noise import Noise

ORDER, PATH, ACCEPT, RESIDUAL, RESIDUAL_ACCEPT = range(100, 105)  # apart from the purposes of discrete samplers


class TokenNoise:
    """Normals and uniforms for the tokens of a batch.

    Args:
        noise: seed and sample numbers of the run.
    """

    def __init__(self, noise: Noise):
        self.seed, self.samples = noise.seed, noise.samples

    def orders(self, length: int) -> Tensor:
        """A random permutation for each sample, int64 [B, L]."""
        places = torch.arange(length, device=self.samples.device)
        return counter_uniform(self.seed, self.samples[:, None], places, ORDER).argsort(1)

    def paths(
        self, rows: Tensor, positions: Tensor, steps: int, dim: int, purpose: int = PATH, attempt: int | Tensor = 0
    ) -> Tensor:
        """Standard normals of whole denoising paths.

        Args:
            rows: batch row of each token, int64 [N].
            positions: position of each token, int64 [N].
            steps: T, steps of a path.
            dim: D, width of a token.
            purpose: whose path.
            attempt: how often a path was drawn for the token before.

        Returns:
            float32 [T + 1, N, D]; entry i is the noise that step i adds, entry T the start.
        """
        device = self.samples.device
        step = torch.arange(steps + 1, device=device)[:, None, None]
        channel = torch.arange(dim, device=device)
        tokens = (self.samples[rows][:, None], positions[:, None])
        attempt = attempt[:, None] if isinstance(attempt, Tensor) else attempt
        return counter_normal(self.seed, *tokens, purpose, attempt, step, channel).float()

    def uniform(self, rows: Tensor, positions: Tensor, purpose: int, attempt: int | Tensor = 0) -> Tensor:
        """Uniforms in (0, 1) of tokens, float64 [N]."""
        return counter_uniform(self.seed, self.samples[rows], positions, purpose, attempt)
