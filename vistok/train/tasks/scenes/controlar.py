"""What scenes teach a ControlAR beside their codes: what each code shows, texture aside."""

from __future__ import annotations

from dataclasses import dataclass

from vistok.models.controlar import ControlAR
from vistok.train.tasks.controlar import ControlARData, ControlARTask
from vistok.train.tasks.scenes.reader import ColourTerm, count_colours


@dataclass(frozen=True, kw_only=True)
class SupervisedControlARData(ControlARData):
    """Entries of ``data``, beside those of ControlARData.

    Attributes:
        supervision: weight of ``colour_loss``.
    """

    supervision: float


class SupervisedControlARTask(ControlARTask):
    """The ``controlar`` task with ``data.supervision``: see SupervisedControlARData."""

    data_class = SupervisedControlARData

    def term(self, gpt: ControlAR) -> ColourTerm:
        """Returns the loss of what codes show, counted in some scenes."""
        colours = count_colours(self.vq, gpt.config.grid, self.data.size, self.data.seed)
        return ColourTerm(colours, self.data.supervision)
