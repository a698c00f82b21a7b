"""What scenes teach an xAR beside the published loss: the silhouettes of the objects within each token, and of which
kind the object there is, which binds the words of a caption to places.

Linear maps read them from the states that tell the velocities; they serve training alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import NUM_CLASSES
from vistok.models.xar import XAR
from vistok.train.sources import Draw, Extracted
from vistok.train.tasks.latents import LatentData
from vistok.train.tasks.scenes.plans import SILHOUETTE, both_cells, both_silhouettes, silhouette_loss
from vistok.train.tasks.xar import XARObjective, XARTask


@dataclass(frozen=True, kw_only=True)
class SupervisedXARData(LatentData):
    """Entries of ``data``, beside those of LatentData.

    Attributes:
        supervision: weight of the cross-entropy of silhouettes.
        kinds: weight of the cross-entropy of the kinds of objects, which classes tell and captions have to be read for.
    """

    supervision: float
    kinds: float = 0.0


class SupervisedXAR(XARObjective):
    """The squared error of velocities, and the cross-entropies of silhouettes and kinds.

    Args:
        xar: the generator.
        supervision: weight of silhouettes.
        kinds: weight of kinds.
    """

    def __init__(self, xar: XAR, supervision: float, kinds: float):
        super().__init__(xar)
        self.supervision, self.kinds = supervision, kinds
        width = xar.config.embed_dim
        self.silhouette = nn.Linear(width, SILHOUETTE**2)
        self.kind = nn.Linear(width, NUM_CLASSES + 1) if kinds else None

    def forward(self, latents: Tensor, values: Tensor, silhouettes: Tensor, cells: Tensor | None = None):
        """Returns the loss of a batch and its parts.

        Args:
            latents, values: see XAR.
            silhouettes: of tokens, see ``plans``, uint8 [B, L, SILHOUETTE^2].
            cells: kind of the object in each token, or none, uint8 [B, L].
        """
        sequence, t, values, velocities = self.xar.noisy(latents, values)
        states = self.xar.states(sequence, t, values)
        velocity = F.mse_loss(self.xar.pred(states).float(), velocities)
        told = self.xar.entities.split(silhouettes.float())
        silhouette = silhouette_loss(self.silhouette(states), told)
        metrics = {"velocity": velocity.detach(), "silhouette": silhouette.detach()}
        loss = velocity + self.supervision * silhouette
        if self.kind is not None:
            shares = self.xar.entities.split(F.one_hot(cells.long(), NUM_CLASSES + 1).float())
            kind = F.cross_entropy(self.kind(states).float().flatten(0, 1), shares.flatten(0, 1))
            loss, metrics["kind"] = loss + self.kinds * kind, kind.detach()
        return loss, metrics


class SupervisedXARTask(XARTask):
    """The ``xar`` task with ``data.supervision``: see SupervisedXARData."""

    data_class = SupervisedXARData

    def objective(self) -> SupervisedXAR:
        """Returns what is trained."""
        self.silhouettes = Extracted(len(self.source), self._silhouettes, torch.uint8)
        self.cells = Extracted(len(self.source), self._cells, torch.uint8)
        return SupervisedXAR(self.xar, self.data.supervision, self.data.kinds)

    def _silhouettes(self, index: Tensor) -> Tensor:
        return both_silhouettes(self.source.scenes(index), self.xar.config.grid, self.data.size)

    def _cells(self, index: Tensor) -> Tensor:
        return both_cells(self.source.scenes(index), self.xar.config.grid, self.data.size)

    def told(self, draw: Draw, mirrored: Tensor) -> dict[str, Tensor]:
        """Returns silhouettes of the tokens, and kinds if they are to be learned."""
        row = torch.arange(len(mirrored))
        told = {"silhouettes": self.silhouettes[draw.index][row, mirrored]}
        if self.data.kinds:
            told["cells"] = self.cells[draw.index][row, mirrored]
        return told
