"""Drawing tokens from MAR's diffusion head: the published ancestral sampler, and a faster solver.

The head is MAR's cost: every token takes T small network calls. Guidance runs as one state under two conditions (the
reference carries two states, one of which it overwrites); both share a call. What depends on time and condition alone
is computed for many steps in one product (``HeadNetwork.modulation``), so that a step is the MLP and nothing else.

``dpm++`` is DPM-Solver++(2M) (Lu et al., arXiv 2211.01095) on the probability-flow equation: deterministic given its
start, and good at about ten calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from vistok.errors import unknown_name
from vistok.models.mar.diffusion import Diffusion, diffusion
from vistok.models.mar.head import HeadNetwork
from vistok.ops import combine_guidance

MODULATION_VALUES = 1 << 24  # values of precomputed modulation that are held at a time
SPACINGS = ("even", "root")
SOLVER_RANGE = (980, 20)  # first and last trained step of the solver: below 980 the signal's share exceeds 3 per cent


class DenoisingChain(Protocol):
    """The denoising Markov chain of N tokens.

    Attributes:
        steps: T.
    """

    steps: int

    def transition(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation of the state before ``x`` [N, D], each [N, D]."""

    def transitions(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the states of all steps at once, [T, N, D]; entry i is what step i starts from."""


class HeadChain:
    """MAR's head at given conditions.

    Args:
        net: the denoiser.
        process: the spaced process.
        z: conditions [N, Z]; with guidance [2 N, Z], the unconditional half last.
        guidance: scale of each token [N], or None for no guidance. The variance is the conditional one, not guided.
        temperature: multiplies the noise.

    Attributes:
        steps: T.
        calls, rows: network calls so far, and the rows of all of them.
    """

    def __init__(
        self, net: HeadNetwork, process: Diffusion, z: Tensor, guidance: Tensor | None = None, temperature: float = 1.0
    ):
        self.net, self.process, self.z = net, process, z
        self.guidance = None if guidance is None else guidance[:, None]
        self.log_temperature = math.log(temperature) if temperature else -math.inf
        self.steps = len(process)
        self.calls = self.rows = 0
        self._block: tuple[int, Tensor] | None = None  # first step, and modulations [S, N or 2 N, M]
        width = net.input_proj.out_features
        values = len(z) * width * (3 * len(net.res_blocks) + 2)
        self.block_steps = max(1, min(self.steps, MODULATION_VALUES // max(1, values)))

    def _modulations(self, first: int, last: int) -> Tensor:
        times = self.process.timesteps[first:last].to(self.z.device)
        return self.net.modulation(times[:, None], self.z)

    def _modulation(self, step: int) -> Tensor:
        if self._block is None or not self._block[0] <= step < self._block[0] + len(self._block[1]):
            first = max(0, step + 1 - self.block_steps)
            self._block = first, self._modulations(first, step + 1)
        return self._block[1][step - self._block[0]]

    def _predict(self, x: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """Guided noise and the variance's place, [..., N, D]."""
        count = x.shape[-2]
        out = self.net.denoise(x if self.guidance is None else torch.cat([x, x], dim=-2), modulation).float()
        self.calls += 1
        self.rows += out.numel() // out.shape[-1]
        eps, v = out[..., :count, :].chunk(2, dim=-1)
        if self.guidance is not None:
            eps = combine_guidance(eps, out[..., count:, : eps.shape[-1]], self.guidance)
        return eps, v

    def clean(self, x: Tensor, step: int) -> Tensor:
        """The clean values [N, D] that the network sees in ``x``."""
        return self.process.clean(x, step, self._predict(x, self._modulation(step))[0])

    def transition(self, x: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """See ``DenoisingChain``."""
        law = self.process.transition(x, step, *self._predict(x, self._modulation(step)))
        return law.mean, 0.5 * law.log_variance + self.log_temperature

    def transitions(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """See ``DenoisingChain``; as many steps in a call as memory allows."""
        means, log_stds = [], []
        for first in range(0, self.steps, self.block_steps):
            last = min(self.steps, first + self.block_steps)
            x = states[first:last]
            eps, v = self._predict(x, self._modulations(first, last))
            step = torch.arange(first, last, device=x.device)[:, None]
            law = self.process.transition(x, step, eps, v)
            means.append(law.mean)
            log_stds.append(0.5 * law.log_variance + self.log_temperature)
        return torch.cat(means), torch.cat(log_stds)


@dataclass(frozen=True)
class Path:
    """Denoising paths of N tokens.

    Attributes:
        states: what each step starts from, [T, N, D]; entry T - 1 is the start.
        noise: what each step added, in standard deviations, [T, N, D].
        log_std: of each step, [T, N, D].
        mean: of the last step, [N, D].
        value: the token, [N, D].
    """

    states: Tensor
    noise: Tensor
    log_std: Tensor
    mean: Tensor
    value: Tensor

    @property
    def trajectory_log_std(self) -> Tensor:
        """Sum of the log standard deviations of all steps but the last, [N, D]."""
        return self.log_std[1:].sum(0)

    def where(self, rows: Tensor) -> Path:
        """The paths of some tokens."""
        return Path(*(x[:, rows] for x in (self.states, self.noise, self.log_std)), self.mean[rows], self.value[rows])

    @staticmethod
    def cat(paths: list[Path]) -> Path:
        """The paths of several groups of tokens as one."""
        long = (torch.cat([getattr(p, name) for p in paths], 1) for name in ("states", "noise", "log_std"))
        return Path(*long, torch.cat([p.mean for p in paths]), torch.cat([p.value for p in paths]))


def draw_path(chain: DenoisingChain, noise: Tensor, last_noise: bool = False) -> Path:
    """Ancestral sampling that keeps what it went through.

    Args:
        chain: the head.
        noise: [T + 1, N, D], see ``TokenNoise.paths``.
        last_noise: whether step 0 adds noise too; the published sampler adds none.
    """
    x = noise[-1]
    states, log_stds = [], []
    for step in range(chain.steps - 1, -1, -1):
        states.append(x)
        mean, log_std = chain.transition(x, step)
        log_stds.append(log_std)
        x = mean + log_std.exp() * noise[step] if step > 0 or last_noise else mean
    return Path(torch.stack(states[::-1]), noise[:-1], torch.stack(log_stds[::-1]), mean, x)


def draw(chain: DenoisingChain, noise: Tensor) -> Tensor:
    """Ancestral sampling as published: tokens [N, D] from noise [T + 1, N, D]; the last step adds none."""
    x = noise[-1]
    for step in range(chain.steps - 1, 0, -1):
        mean, log_std = chain.transition(x, step)
        x = mean + log_std.exp() * noise[step]
    return chain.transition(x, 0)[0]


@lru_cache(maxsize=32)
def solver_process(steps: int) -> Diffusion:
    """The process of the solver's steps: trained steps over ``SOLVER_RANGE``, denser towards clean values.

    Spaced evenly in the square root of time, ten steps find the spread of a normal law of deviation 0.5 to 0.004;
    evenly in time, to 0.045.
    """
    first, last = SOLVER_RANGE
    return Diffusion((torch.linspace(last**0.5, first**0.5, steps) ** 2).round().long().unique())


def head_process(spacing: str, steps: int) -> Diffusion:
    """The process of the head's steps.

    Args:
        spacing: ``even`` over all trained steps, as published; or ``root``, that of :func:`solver_process`, which
            begins where the signal's share is 3 per cent. The first even step multiplies the network's error by the
            inverse of a signal of 5e-5, which only a long-trained head survives.
        steps: how many.

    Raises:
        VistokError: unknown spacing.
    """
    if spacing not in SPACINGS:
        raise unknown_name("spacing of the head's steps", spacing, list(SPACINGS))
    return solver_process(steps) if spacing == "root" else diffusion(str(steps))


def solve(chain: HeadChain, start: Tensor) -> Tensor:
    """Tokens [N, D] from normal starts [N, D] by DPM-Solver++(2M); the chain is on a :func:`solver_process`."""
    signal = chain.process.alphas_cumprod.sqrt().tolist()
    sigma = (1 - chain.process.alphas_cumprod).sqrt().tolist()
    x, before, h_before = start * math.exp(chain.log_temperature), None, 0.0
    for step in range(chain.steps - 1, 0, -1):
        x0 = chain.clean(x, step)
        h = _half_log_snr(signal[step - 1], sigma[step - 1]) - _half_log_snr(signal[step], sigma[step])
        guess = x0
        if before is not None:
            guess = x0 + h / (2 * h_before) * (x0 - before)
        x = sigma[step - 1] / sigma[step] * x - signal[step - 1] * math.expm1(-h) * guess
        before, h_before = x0, h
    return chain.clean(x, 0)


def _half_log_snr(signal: float, sigma: float) -> float:
    return math.log(signal / sigma)
