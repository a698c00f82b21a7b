"""The Gaussian diffusion of MAR's head: cosine schedule, respacing, and the laws of its steps.

As in improved diffusion (Nichol and Dhariwal, arXiv 2102.09672): the network predicts the noise, and a number in
[-1, 1] that places each log variance between the posterior's and beta's. Tables are float64; states are float32
whatever the network's dtype, because a step near t = 999 divides by 5e-5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from vistok.errors import VistokError

STEPS = 1000


def cosine_betas(steps: int = STEPS, max_beta: float = 0.999) -> Tensor:
    """Betas of the cosine schedule, float64 [steps]."""

    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((i + 1) / steps) / level(i / steps), max_beta) for i in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


def respace(spacing: str, steps: int = STEPS) -> Tensor:
    """Which of the trained steps are kept, ascending int64.

    Args:
        spacing: a number of steps, spread from the first to the last; a comma list, one number for each equal section
            of the schedule; ``ddimN``, every k-th step from 0 for the integer k that gives N; empty for all.
        steps: trained steps.

    Raises:
        VistokError: the schedule has no such spacing.
    """
    if not spacing:
        return torch.arange(steps)
    digits = spacing.removeprefix("ddim").split(",")
    if not all(d.strip().isdecimal() and int(d) > 0 for d in digits) or (
        spacing.startswith("ddim") and len(digits) > 1
    ):
        raise VistokError(f"'{spacing}' is no spacing of diffusion steps: write a number, '10,5' or 'ddim25'.")
    counts = [int(d) for d in digits]
    if spacing.startswith("ddim"):
        for stride in range(1, steps):
            if len(range(0, steps, stride)) == counts[0]:
                return torch.arange(0, steps, stride)
        raise VistokError(f"no integer stride over {steps} steps gives '{spacing}': use '{counts[0]}'.")
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if count > size:
            raise VistokError(f"a section of {size} diffusion steps cannot be spaced to {count}: ask for fewer.")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            kept.append(start + round(place))
            place += stride
        start += size
    return torch.tensor(kept)


@dataclass(frozen=True)
class Transition:
    """The Gaussian law of the next state.

    Attributes:
        mean, log_variance: [..., D], float32.
    """

    mean: Tensor
    log_variance: Tensor


class Diffusion:
    """The tables of a spaced process over T steps; step 0 is the last one that sampling takes.

    Args:
        spacing: see :func:`respace`; or the kept steps themselves, ascending int64.
        steps: trained steps.

    Attributes:
        timesteps: what the network is told at each step, int64 [T].
        betas, alphas_cumprod: float64 [T].
    """

    def __init__(self, spacing: str | Tensor = "", steps: int = STEPS):
        self.timesteps = spacing if isinstance(spacing, Tensor) else respace(spacing, steps)
        kept = (1 - cosine_betas(steps)).cumprod(0)[self.timesteps]
        self.betas = 1 - kept / torch.cat([kept.new_ones(1), kept[:-1]])
        if len(self.timesteps) == steps:
            self.betas = cosine_betas(steps)
        self.alphas_cumprod = (1 - self.betas).cumprod(0)

    def __len__(self) -> int:
        return len(self.timesteps)

    @cached_property
    def _previous(self) -> Tensor:
        return torch.cat([self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]])

    @cached_property
    def sqrt_recip_alphas_cumprod(self) -> Tensor:
        """1 / sqrt(abar), float64 [T]."""
        return (1 / self.alphas_cumprod).sqrt()

    @cached_property
    def sqrt_recipm1_alphas_cumprod(self) -> Tensor:
        """sqrt(1 / abar - 1), float64 [T]."""
        return (1 / self.alphas_cumprod - 1).sqrt()

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of the state before, given this one and the clean value, float64 [T]; 0 at step 0."""
        return self.betas * (1 - self._previous) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Tensor:
        """Its logarithm, with step 1's value at step 0."""
        return torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()

    @cached_property
    def posterior_mean_coef1(self) -> Tensor:
        """Share of the clean value in the posterior's mean."""
        return self.betas * self._previous.sqrt() / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Tensor:
        """Share of the state in the posterior's mean."""
        return (1 - self._previous) * (1 - self.betas).sqrt() / (1 - self.alphas_cumprod)

    @cached_property
    def log_betas(self) -> Tensor:
        """Logarithms of the betas, the upper end of the learned range."""
        return self.betas.log()

    @cached_property
    def _transition(self) -> tuple[Tensor, ...]:
        """What the state and the noise weigh in a transition's mean; middle and half width of its log variance."""
        state = self.posterior_mean_coef1 * self.sqrt_recip_alphas_cumprod + self.posterior_mean_coef2
        noise = -self.posterior_mean_coef1 * self.sqrt_recipm1_alphas_cumprod
        low, high = self.posterior_log_variance_clipped, self.log_betas
        return state, noise, (high + low) / 2, (high - low) / 2

    def at(self, table: Tensor, step: int | Tensor, like: Tensor) -> float | Tensor:
        """Entries of a table: a number, or float32 [..., 1] for a tensor of steps."""
        if isinstance(step, int):
            return float(table[step])
        return table.to(like.device)[step].float()[..., None]

    def q_sample(self, x0: Tensor, step: Tensor, noise: Tensor) -> Tensor:
        """Noisy states [N, D] of clean values at steps [N]."""
        keep = self.at(self.alphas_cumprod.sqrt(), step, x0)
        return keep * x0 + self.at((1 - self.alphas_cumprod).sqrt(), step, x0) * noise

    def posterior_mean(self, x0: Tensor, x: Tensor, step: int | Tensor) -> Tensor:
        """Mean of the state before ``x``, given the clean value."""
        return self.at(self.posterior_mean_coef1, step, x) * x0 + self.at(self.posterior_mean_coef2, step, x) * x

    def transition(self, x: Tensor, step: int | Tensor, eps: Tensor, v: Tensor) -> Transition:
        """The law of the state before ``x``.

        Args:
            x: states [..., D].
            step: of all states, or of each [...].
            eps, v: the network's two halves [..., D].
        """
        state, noise, middle, half = (self.at(table, step, x) for table in self._transition)
        return Transition(state * x + noise * eps.float(), middle + half * v.float())

    def clean(self, x: Tensor, step: int | Tensor, eps: Tensor) -> Tensor:
        """The clean value that the network's noise implies, [..., D]; see :meth:`transition`."""
        signal, noise = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return self.at(signal, step, x) * x - self.at(noise, step, x) * eps.float()

    def variational_bits(self, x0: Tensor, x: Tensor, step: Tensor, law: Transition) -> Tensor:
        """Term of the variational bound in bits per value, [N]; at step 0 a likelihood in bins of width 2/255."""
        mean = self.posterior_mean(x0, x, step)
        logvar = self.at(self.posterior_log_variance_clipped, step, x)
        kl = gaussian_divergence(mean, logvar, law.mean, law.log_variance)
        nll = -discretised_log_likelihood(x0, law.mean, 0.5 * law.log_variance)
        return torch.where(step[:, None] == 0, nll, kl).mean(-1) / math.log(2)


def gaussian_divergence(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence in nats from one-dimensional Gaussians to others, elementwise."""
    surplus = log_variance - other_log_variance
    return 0.5 * (surplus.exp() - surplus - 1 + (mean - other_mean).square() * (-other_log_variance).exp())


def discretised_log_likelihood(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Log probability of the bin around x of half width 1/255 under a Gaussian; open-ended outside +-0.999."""

    def cdf(y: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))  # the reference's approximation

    centred, scale = x - mean, (-log_std).exp()
    upper, lower = cdf(scale * (centred + 1 / 255)), cdf(scale * (centred - 1 / 255))
    inside = (upper - lower).clamp(min=1e-12).log()
    below, above = upper.clamp(min=1e-12).log(), (1 - lower).clamp(min=1e-12).log()
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


@lru_cache(maxsize=32)
def diffusion(spacing: str = "") -> Diffusion:
    """The process of a spacing, built once."""
    return Diffusion(spacing)
