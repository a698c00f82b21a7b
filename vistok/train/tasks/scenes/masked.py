"""What scenes teach a generator of masked codes beside the published loss: what a hidden code shows, texture aside, and
which part of it an object covers.

Of a scene's nats few tell which code belongs to which object, see ``reader.colour_loss``, and where its edge is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.masked import MaskedTransformer
from vistok.train.options import Fraction
from vistok.train.sources import Draw, Extracted, Source, open_source
from vistok.train.tasks.masked import ENATData, ENATTask, MaskedData, MaskGITTask
from vistok.train.tasks.scenes.plans import SILHOUETTE, both_silhouettes, silhouette_loss
from vistok.train.tasks.scenes.reader import ColourTerm, count_colours


@dataclass(frozen=True, kw_only=True)
class SupervisedMaskedData(MaskedData):
    """Entries of ``data``, beside those of MaskedData.

    Attributes:
        supervision: weight of the cross-entropy of what hidden codes show.
        silhouettes: weight of the cross-entropy of the silhouettes that a linear map, which serves training alone,
            reads from their features.
        single: share of a batch's scenes that have one object, chosen from twice as many; by itself one in five has,
            and with 1 all have.
    """

    supervision: float
    silhouettes: float = 0.0
    single: Fraction = 0.0


@dataclass(frozen=True, kw_only=True)
class SupervisedENATData(SupervisedMaskedData, ENATData):
    """Entries of ``data`` of the ``enat`` task: those of SupervisedMaskedData and ENATData."""


class SceneTerm(nn.Module):
    """What hidden codes show, and the objects' silhouettes in them.

    Args:
        colours: the loss of the former.
        width: of features.
        weight: of the loss of the latter.
    """

    def __init__(self, colours: ColourTerm, width: int, weight: float):
        super().__init__()
        self.colours, self.width, self.weight = colours, width, weight
        self.silhouettes = nn.Linear(width, SILHOUETTE**2) if weight else None

    def forward(self, features: Tensor, logits: Tensor, codes: Tensor, silhouettes: Tensor | None = None) -> Tensor:
        """Returns the loss of n codes; silhouettes are uint8 [n, SILHOUETTE^2]."""
        loss = self.colours(logits, codes)
        if self.silhouettes is None:
            return loss
        read = self.silhouettes(F.layer_norm(features, (self.width,)))
        return loss + self.weight * silhouette_loss(read, silhouettes)


class SupervisedMaskGITTask(MaskGITTask):
    """The ``maskgit`` task with ``data.supervision``: see SupervisedMaskedData."""

    data_class = SupervisedMaskedData

    def open(self) -> Source:
        """Returns the scenes that it trains on."""
        alone = self.text is None or self.data.single == 1
        return open_source(self.data, self.data.size, finite=True, by_class=alone)

    def term(self, network: MaskedTransformer) -> SceneTerm:
        """Returns the loss of what codes show, counted in some scenes, and of silhouettes."""
        config, data = network.config, self.data
        self.silhouettes = Extracted(len(self.source), self._silhouettes, torch.uint8)
        colours = count_colours(self.tokenizer, config.grid, data.size, data.seed)
        return SceneTerm(ColourTerm(colours, data.supervision), config.embed_dim, data.silhouettes)

    def _silhouettes(self, index: Tensor) -> Tensor:
        return both_silhouettes(self.source.scenes(index), self.model.network.config.grid, self.data.size)

    def told(self, draw: Draw, mirrored: Tensor) -> dict[str, Tensor]:
        """Returns silhouettes of the codes, if they are to be learned."""
        if not self.data.silhouettes:
            return {}
        return {"silhouettes": self.silhouettes[draw.index][torch.arange(len(mirrored)), mirrored]}

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
