"""What scenes teach an xAR beside the published loss: the silhouette of the object within each token.

A linear map reads it from the states that tell the velocities; it serves training alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.xar import XAR
from vistok.train.sources import Draw, Extracted
from vistok.train.tasks.latents import LatentData
from vistok.train.tasks.scenes.plans import SILHOUETTE, both_silhouettes, silhouette_loss
from vistok.train.tasks.xar import XARObjective, XARTask


@dataclass(frozen=True, kw_only=True)
class SupervisedXARData(LatentData):
    """Entries of ``data``, beside those of LatentData.

    Attributes:
        supervision: weight of the cross-entropy of silhouettes.
    """

    supervision: float


class SupervisedXAR(XARObjective):
    """The squared error of velocities, and the cross-entropy of silhouettes.

    Args:
        xar: the generator.
        supervision: weight of the latter.
    """

    def __init__(self, xar: XAR, supervision: float):
        super().__init__(xar)
        self.supervision = supervision
        self.silhouette = nn.Linear(xar.config.embed_dim, SILHOUETTE**2)

    def forward(self, latents: Tensor, labels: Tensor, silhouettes: Tensor):
        """Returns the loss of a batch and its parts.

        Args:
            latents, labels: see XAR.
            silhouettes: of tokens, see ``plans``, uint8 [B, L, SILHOUETTE^2].
        """
        sequence, t, labels, velocities = self.xar.noisy(latents, labels)
        states = self.xar.states(sequence, t, labels)
        velocity = F.mse_loss(self.xar.pred(states).float(), velocities)
        told = self.xar.entities.split(silhouettes.float())
        silhouette = silhouette_loss(self.silhouette(states), told)
        metrics = {"velocity": velocity.detach(), "silhouette": silhouette.detach()}
        return velocity + self.supervision * silhouette, metrics


class SupervisedXARTask(XARTask):
    """The ``xar`` task with ``data.supervision``: see SupervisedXARData."""

    data_class = SupervisedXARData

    def objective(self) -> SupervisedXAR:
        """Returns what is trained."""
        self.silhouettes = Extracted(len(self.source), self._silhouettes, torch.uint8)
        return SupervisedXAR(self.xar, self.data.supervision)

    def _silhouettes(self, index: Tensor) -> Tensor:
        return both_silhouettes(self.source.scenes(index), self.xar.config.grid, self.data.size)

    def told(self, draw: Draw, mirrored: Tensor) -> dict[str, Tensor]:
        """Returns silhouettes of the tokens."""
        return {"silhouettes": self.silhouettes[draw.index][torch.arange(len(mirrored)), mirrored]}
