"""One-dimensional denoising chains whose output law is known, and their random numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vistok.models.mar import Diffusion


@dataclass(frozen=True)
class MixtureChain:
    """The best head there is for data from a mixture of normals: its posterior mean in closed form.

    The law of the chain's output is computed by quadrature over the states, to about 1e-8.

    Attributes:
        process: the spaced process.
        means, stds, weights: of the data's components.
        spread: where the log variance lies between the posterior's (0) and beta's (1).
    """

    process: Diffusion
    means: tuple[float, ...]
    stds: tuple[float, ...]
    weights: tuple[float, ...]
    spread: float = 0.5

    @property
    def steps(self) -> int:
        return len(self.process)

    def _log_std(self, step: int) -> float:
        low, high = self.process.posterior_log_variance_clipped[step], self.process.log_betas[step]
        return 0.5 * float(self.spread * high + (1 - self.spread) * low)

    def transition(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        level = float(self.process.alphas_cumprod[step])
        means, stds, weights = (x.new_tensor(v) for v in (self.means, self.stds, self.weights))
        variance = level * stds**2 + 1 - level
        error = x[..., None] - math.sqrt(level) * means
        share = (weights.log() - 0.5 * variance.log() - 0.5 * error**2 / variance).softmax(-1)
        clean = (share * (means + stds**2 * math.sqrt(level) / variance * error)).sum(-1)
        mean = (
            float(self.process.posterior_mean_coef1[step]) * clean + float(self.process.posterior_mean_coef2[step]) * x
        )
        return mean, torch.full_like(x, self._log_std(step))

    def transitions(self, states: Tensor) -> tuple[Tensor, Tensor]:
        each = [self.transition(states[step], step) for step in range(self.steps)]
        return torch.stack([mean for mean, _ in each]), torch.stack([log_std for _, log_std in each])

    @cached_property
    def _before_last(self) -> tuple[Tensor, Tensor]:
        """States [G] and their probabilities [G] before the last step."""
        grid = torch.linspace(-9, 9, 3001, dtype=torch.float64)
        mass = torch.exp(-0.5 * grid**2)
        for step in range(self.steps - 1, 0, -1):
            mean, log_std = self.transition(grid, step)
            mass = torch.exp(-0.5 * ((grid[:, None] - mean) / log_std.exp()) ** 2) @ (mass / mass.sum())
        return grid, mass / mass.sum()

    def cdf(self, y: Tensor) -> Tensor:
        """Distribution function of the output, with noise in the last step, float64."""
        grid, mass = self._before_last
        mean, log_std = self.transition(grid, 0)
        points = torch.linspace(-9, 9, 6001, dtype=torch.float64)
        table = torch.special.ndtr((points[:, None] - mean) / log_std.exp()) @ mass
        place = ((y.double() + 9) / 18 * 6000).clamp(0, 5999.999)
        low = place.long()
        return torch.lerp(table[low], table[low + 1], place - low)


class GeneratorNumbers:
    """Random numbers of residual draws from a generator; every call is fresh."""

    def __init__(self, seed: int):
        self.generator = torch.Generator().manual_seed(seed)

    def path(self, tokens: Tensor, attempt: Tensor, steps: int, dim: int) -> Tensor:
        return torch.randn(steps + 1, len(tokens), dim, generator=self.generator)

    def uniform(self, tokens: Tensor, attempt: Tensor) -> Tensor:
        return torch.rand(len(tokens), generator=self.generator, dtype=torch.float64)


def kolmogorov(values: Tensor, cdf: Tensor) -> float:
    """Kolmogorov-Smirnov statistic of a sample [n] whose distribution function at its points is ``cdf`` [n]."""
    ordered = cdf[values.argsort()]
    n = len(values)
    rank = torch.arange(n, dtype=torch.float64)
    return max(float((ordered - rank / n).max()), float(((rank + 1) / n - ordered).max()))


def kolmogorov_two(a: Tensor, b: Tensor) -> float:
    """Two-sample Kolmogorov-Smirnov statistic."""
    points = torch.cat([a, b]).sort().values
    share = [torch.searchsorted(x.sort().values, points, right=True) / len(x) for x in (a, b)]
    return float((share[0] - share[1]).abs().max())
