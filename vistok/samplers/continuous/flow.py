"""Flow matching from noise (t = 1) to data (t = 0): the samplers of xAR (arXiv 2502.20388), in float64.

The velocity is v = noise - x0 on the straight path x_t = (1 - t) x0 + t noise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # states [B, n, D] and the time, a scalar, to velocities
LAST = 0.04  # where the stochastic steps end; the last one is deterministic


def score(velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Returns the gradient of the log density of states at time ``t``."""
    return -((1 - t) * velocity + x) / t


def drift(velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """Returns the drift v - t score = (2 - t) v + x of the stochastic process whose noise is sqrt(2 t)."""
    return (2 - t) * velocity + x


def stochastic_times(steps: int) -> Tensor:
    """Returns the times of ``euler_maruyama``, float64 [steps + 1]."""
    return torch.cat([torch.linspace(1, LAST, steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])


def euler_maruyama(velocity: Velocity, start: Tensor, noise: Tensor) -> Tensor:
    """Returns data drawn by the published stochastic sampler.

    Args:
        velocity: of the states, guided.
        start: standard normals [B, n, D].
        noise: of the ``steps - 1`` stochastic steps, [steps - 1, B, n, D].
    """
    x, times = start.double(), stochastic_times(len(noise) + 1).to(start.device)
    for t, after, fresh in zip(times, times[1:], (*noise, None), strict=False):
        step = after - t
        x = x + drift(velocity(x, t).double(), x, t) * step
        if fresh is not None:
            x = x + (2 * t * step.abs()).sqrt() * fresh.double()
    return x


def euler(velocity: Velocity, start: Tensor, steps: int) -> Tensor:
    """Returns data at the end of the deterministic path through ``start`` [B, n, D], in equal steps."""
    x, times = start.double(), torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=start.device)
    for t, after in pairwise(times):
        x = x + (after - t) * velocity(x, t).double()
    return x


def midpoint(velocity: Velocity, start: Tensor, steps: int) -> Tensor:
    """Returns data at the end of the deterministic path through ``start`` [B, n, D], in equal steps of second order:
    each asks for the velocity twice, where it begins and half way on."""
    x, times = start.double(), torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=start.device)
    for t, after in pairwise(times):
        half = (after - t) / 2
        between = x + half * velocity(x, t).double()
        x = x + (after - t) * velocity(between, t + half).double()
    return x
