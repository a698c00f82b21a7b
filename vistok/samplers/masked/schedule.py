"""How many codes each step of a masked sampler leaves hidden, at which temperatures and guidance (MaskGIT, arXiv
2202.04200, with the ramps of ENAT, arXiv 2411.06959)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from vistok.errors import VistokError, unknown_name

SCHEDULES = ("cosine", "linear")
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
        schedule: how the share of hidden codes falls: ``cosine``, or ``linear``, by which as many steps as codes decide
            one each.
        guidance: scale that the guidance grows towards with the share of steps done, from 1.
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

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise unknown_name("schedule of masks", self.schedule, list(SCHEDULES))
        if self.steps < 1:
            raise VistokError(f"a masked sampler needs at least one step, got {self.steps}.")
        if self.steps > max(1, self.hidden):
            raise VistokError(
                f"{self.steps} steps are more than the {self.hidden} codes that they decide: take {self.hidden} or "
                "fewer."
            )

    def __getitem__(self, step: int) -> MaskStep:
        done = (step + 1) / self.steps
        if self.schedule == "cosine":
            hidden = math.floor(self.hidden * math.cos(math.pi / 2 * done))
        else:
            hidden = self.hidden * (self.steps - step - 1) // self.steps
        return MaskStep(
            hidden,
            1 + (self.guidance - 1) * step / self.steps,
            self.temperature * (max(self.annealed * (1 - done), COLDEST) if self.annealed else 1.0),
            self.choice * (1 - done),
        )

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        return (self[step] for step in range(self.steps))
