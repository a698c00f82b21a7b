"""Which tokens MAR draws in which step: random orders, the cosine mask schedule, and guidance that grows with it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name

GUIDANCE_SCHEDULES = ("linear", "constant")


@dataclass(frozen=True)
class MaskSchedule:
    """The cosine schedule of MAR over ``iterations`` steps.

    Published steps that would draw nothing (more steps than the cosine has values) are left out.

    Attributes:
        length: tokens of a picture, L.
        iterations: steps that are asked for.

    Raises:
        VistokError: fewer than one step.
    """

    length: int
    iterations: int

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise VistokError(f"MAR needs at least one step, got {self.iterations}.")

    @cached_property
    def published(self) -> list[int]:
        """Tokens still hidden after each step, as the published sampler counts them: the last entry is 1, not 0."""
        counts, hidden = [], self.length
        for step in range(self.iterations):
            wanted = math.floor(self.length * math.cos(math.pi / 2 * (step + 1) / self.iterations))
            hidden = max(1, min(hidden - 1, wanted))
            counts.append(hidden)
        return counts

    @cached_property
    def steps(self) -> list[tuple[int, int, int]]:
        """Steps that draw something: hidden tokens before, hidden tokens after, and the count that guidance reads."""
        after = [*self.published[:-1], 0]
        before = [self.length, *after[:-1]]
        kept = zip(before, after, self.published, strict=True)
        return [(b, a, n) for b, a, n in kept if a < b]

    def __len__(self) -> int:
        return len(self.steps)

    @cached_property
    def step_of_rank(self) -> Tensor:
        """Which step draws the token at each place of the order, int64 [L]; the first place is drawn last."""
        sizes = torch.tensor([before - after for before, after, _ in reversed(self.steps)])
        return torch.arange(len(self) - 1, -1, -1).repeat_interleave(sizes)

    def guidance(self, scale: float, kind: str) -> list[float]:
        """The scale of classifier-free guidance in each step.

        Args:
            scale: the one that is asked for.
            kind: ``linear`` grows from 1 with the share of known tokens; ``constant``.

        Raises:
            VistokError: unknown kind.
        """
        if kind not in GUIDANCE_SCHEDULES:
            raise unknown_name("guidance schedule", kind, list(GUIDANCE_SCHEDULES))
        if kind == "constant":
            return [scale] * len(self)
        return [1 + (scale - 1) * (self.length - n) / self.length for _, _, n in self.steps]


def ranks(orders: Tensor) -> Tensor:
    """The place of every position in its order, int64 [B, L]: the inverse permutations of ``orders``."""
    places = torch.arange(orders.shape[1], device=orders.device).expand_as(orders)
    return torch.empty_like(orders).scatter(1, orders, places)
