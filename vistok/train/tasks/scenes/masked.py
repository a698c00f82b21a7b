"""What scenes teach a generator of masked codes beside the published loss: what a hidden code shows, texture aside.

Of a scene's nats few tell which code belongs to which object; see ``reader.colour_loss``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vistok.train.sources import Draw, Source, open_source
from vistok.train.tasks.masked import ENATData, ENATTask, MaskedData, MaskGITTask
from vistok.train.tasks.scenes.reader import ColourTerm, count_colours


@dataclass(frozen=True, kw_only=True)
class SupervisedMaskedData(MaskedData):
    """Entries of ``data``, beside those of MaskedData.

    Attributes:
        supervision: weight of the cross-entropy of what hidden codes show.
        single: share of a batch's scenes that have one object, chosen from twice as many; by itself one in five has,
            and with 1 all have.
    """

    supervision: float
    single: float = 0.0


@dataclass(frozen=True, kw_only=True)
class SupervisedENATData(SupervisedMaskedData, ENATData):
    """Entries of ``data`` of the ``enat`` task: those of SupervisedMaskedData and ENATData."""


class SupervisedMaskGITTask(MaskGITTask):
    """The ``maskgit`` task with ``data.supervision``: see SupervisedMaskedData."""

    data_class = SupervisedMaskedData

    def open(self) -> Source:
        """Returns the scenes that it trains on."""
        alone = self.text is None or self.data.single == 1
        return open_source(self.data, self.data.size, finite=True, by_class=alone)

    def term(self) -> ColourTerm:
        """Returns the loss of what codes show, counted in some scenes."""
        grid = self.data.size // self.tokenizer.capabilities.multiple
        colours = count_colours(self.tokenizer, grid, self.data.size, self.data.seed)
        return ColourTerm(colours, self.data.supervision)

    def draw(self, step: int, rows: slice) -> Draw:
        """Returns the pictures of a step's rows, of which ``data.single`` have one object."""
        size = self.recipe.batch_size
        wanted = round(self.data.single * size)
        if wanted in (0, size):
            return super().draw(step, rows)
        found = self.source.draw(step * 2 * size, 2 * size)
        single = self.source.scenes(found.index).present.sum(1) == 1
        first, others = single.nonzero()[:, 0], (~single).nonzero()[:, 0]
        chosen = torch.cat([first[:wanted], others, first[wanted:]])[:size][rows]
        return Draw(found.index[chosen], found.passes[chosen])


class SupervisedENATTask(SupervisedMaskGITTask, ENATTask):
    """The ``enat`` task with ``data.supervision``: see SupervisedENATData."""

    data_class = SupervisedENATData
