"""How many codes each step of a masked sampler leaves hidden, at which temperatures and guidance (MaskGIT, arXiv
2202.04200, with the ramps of ENAT, arXiv 2411.06959, and those of TiTok's generators, arXiv 2406.07550)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from vistok.errors import VistokError, unknown_name

SCHEDULES = ("cosine", "linear", "arccos")
GUIDANCE_SCHEDULES = ("linear", "power-cosine", "constant")
POWER = 3  # of the share of steps done, where guidance follows its cosine
COLDEST = 1e-3  # temperature at which the last step draws, where it anneals


class MaskStep(NamedTuple):
    """One step.

    Attributes:
        hidden: codes that are still hidden behind it.
        guidance: scale of classifier-free guidance; 1 is none.
        temperature: of the draw of codes.
        choice: scale of the Gumbel noise on the confidences that choose which codes stay.
    """

    hidden: int
    guidance: float
    temperature: float
    choice: float


@dataclass(frozen=True)
class MaskPlan:
    """The steps of a picture, or of its hidden part.

    Attributes:
        hidden: codes that are hidden at first.
        steps: S, how many forwards.
        schedule: how the share of hidden codes falls: ``cosine``; ``arccos``, TiTok's, by which every step decides one
            code at least; or ``linear``, by which as many steps as codes decide one each.
        guidance: scale that the guidance grows towards, from 1.
        guidance_schedule: how it grows: ``linear`` with the share of steps done, by the cosine of its third power
            (``power-cosine``), or not at all (``constant``).
        temperature: of the draws; multiplied by what ``annealed`` says.
        annealed: temperature of the first draws, falling to none over the steps; 0 keeps it at 1.
        choice: scale of the confidences' noise, likewise falling.

    Raises:
        VistokError: fewer than one step, more steps than codes, or an unknown schedule.
    """

    hidden: int
    steps: int
    schedule: str = "cosine"
    guidance: float = 1.0
    temperature: float = 1.0
    annealed: float = 0.0
    choice: float = 0.0
    guidance_schedule: str = "linear"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule of masks", self.schedule, list(SCHEDULES))
        if self.guidance_schedule not in GUIDANCE_SCHEDULES:
            raise unknown_name("schedule of guidance", self.guidance_schedule, list(GUIDANCE_SCHEDULES))
        if self.steps < 1:
            raise VistokError(f"a masked sampler needs at least one step, got {self.steps}.")
        if self.steps > max(1, self.hidden):
            raise VistokError(
                f"{self.steps} steps are more than the {self.hidden} codes that they decide: take no more, as in "
                f"masked:steps={self.hidden}."
            )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[MaskStep]:
        hidden = self.hidden
        for step in range(self.steps):
            hidden = self._hidden(step, hidden)
            left = 1 - (step + 1) / self.steps
            yield MaskStep(
                hidden,
                1 + (self.guidance - 1) * self._guided(step / self.steps),
                self.temperature * (max(self.annealed * left, COLDEST) if self.annealed else 1.0),
                self.choice * left,
            )

    def _hidden(self, step: int, before: int) -> int:
        """Codes that a step leaves hidden, of ``before`` that were."""
        done = (step + 1) / self.steps
        if self.schedule == "linear":
            return self.hidden * (self.steps - step - 1) // self.steps
        if self.schedule == "cosine":
            return math.floor(self.hidden * math.cos(math.pi / 2 * done))
        if done == 1:
            return 0
        return max(1, min(before - 1, math.floor(self.hidden * math.acos(done) * 2 / math.pi)))

    def _guided(self, done: float) -> float:
        """The share of the guidance that a step has, given the share of steps done before it."""
        if self.guidance_schedule == "constant":
            return 1.0
        if self.guidance_schedule == "linear":
            return done
        return (1 - math.cos(math.pi * done**POWER)) / 2
