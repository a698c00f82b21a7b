"""Sampling of rectified flows (Liu et al., arXiv 2209.03003) with guidance.

Time runs from 1 (noise) to 0 (data); the velocity is noise minus data. Guidance is classifier-free (Ho and Salimans,
arXiv 2207.12598) or normalised and projected (APG, Sadat et al., arXiv 2410.02416).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Extrapolate from the unconditional to the conditional velocity."""
    return unconditional + scale * (conditional - unconditional)


class NormalizedGuidance:
    """APG: guidance without its part along the conditional velocity, of bounded length, with (negative) momentum over
    steps.

    Holds the momentum of one batch, so take a new one for every batch.

    Args:
        momentum: weight of the last step's difference.
        eta: share of the parallel part that is kept.
        norm_threshold: largest length of a difference; 0 for no bound.
    """

    def __init__(self, momentum: float = -0.5, eta: float = 0.0, norm_threshold: float = 2.5):
        self.momentum, self.eta, self.norm_threshold = momentum, eta, norm_threshold
        self.average: Tensor | float = 0.0

    def __call__(self, conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
        """Guided velocity of [B, ...]; lengths and projections are each picture's."""
        axes = tuple(range(1, conditional.ndim))
        self.average = conditional - unconditional + self.momentum * self.average
        difference = self.average
        if self.norm_threshold > 0:
            length = torch.linalg.vector_norm(difference, dim=axes, keepdim=True)
            difference = difference * (self.norm_threshold / length).clamp_max(1.0)
        direction = conditional.double()
        direction = direction / torch.linalg.vector_norm(direction, dim=axes, keepdim=True).clamp_min(1e-12)
        parallel = (difference.double() * direction).sum(axes, keepdim=True) * direction
        update = (difference - (1 - self.eta) * parallel).to(conditional.dtype)
        return conditional + (scale - 1) * update


@dataclass(frozen=True)
class FlowSampling:
    """How a flow is sampled; the defaults are FlexTok's published recipe.

    Attributes:
        steps: Euler steps.
        scale: of guidance; 1 switches it off.
        normalised: APG rather than classifier-free guidance.
        momentum, eta, norm_threshold: of APG.

    Raises:
        VistokError: fewer than one step.
    """

    steps: int = 20
    scale: float = 7.5
    normalised: bool = True
    momentum: float = -0.5
    eta: float = 0.0
    norm_threshold: float = 2.5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise VistokError(f"a flow needs at least one step, got {self.steps}.")

    def run(
        self,
        noise: Tensor,
        conditional: Callable[[Tensor, Tensor], Tensor],
        unconditional: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Integrate from noise to data.

        Args:
            noise: [B, ...].
            conditional, unconditional: (x, times [B]) -> velocity; the second is not called without guidance.
        """
        guide = classifier_free
        if self.normalised:
            guide = NormalizedGuidance(self.momentum, self.eta, self.norm_threshold)
        x = noise
        for step in range(self.steps, 0, -1):
            times = torch.full((len(x),), step / self.steps, device=x.device, dtype=x.dtype)
            velocity = conditional(x, times)
            if self.scale != 1:
                velocity = guide(velocity, unconditional(x, times), self.scale)
            x = x - velocity / self.steps
        return x


def noise_for(
    count: int, shape: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator], device: torch.device
) -> Tensor:
    """Returns standard normal noise [count, *shape], drawn picture by picture, so that it does not depend on the batch
    size.

    Args:
        count: how many pictures.
        shape: of the noise of one.
        generator: draws for all in turn; or one for each picture.
        device: of the noise, which is drawn on the CPU.

    Raises:
        VistokError: there are several generators, and not one for each picture.
    """
    generators = [generator] * count if isinstance(generator, torch.Generator) else generator
    if len(generators) != count:
        raise VistokError(f"{len(generators)} generators cannot draw for {count} pictures: give one, or one each.")
    return torch.stack([torch.randn(shape, generator=each) for each in generators]).to(device)


def one_noise_for(
    count: int, shape: tuple[int, ...], generator: torch.Generator | Sequence[torch.Generator] | None
) -> Tensor:
    """Returns normal noise [count, *shape] on the CPU, the same for every picture, so that equal tokens paint equal
    pictures in any batch.

    Args:
        count, shape: see ``noise_for``.
        generator: draws it, or one that of each picture; it is fixed if None.

    Raises:
        VistokError: there are several generators, and not one for each picture.
    """
    generator = generator or torch.Generator().manual_seed(0)
    rows = 1 if isinstance(generator, torch.Generator) else count
    return noise_for(rows, shape, generator, torch.device("cpu")).expand(count, *shape)
