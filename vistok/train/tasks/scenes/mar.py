"""What scenes teach a MAR beside the published loss, most of which is noise that nothing predicts.

Two linear maps read from the conditions of hidden tokens what the token is, by squared error, and the silhouette of the
object within it. They serve training alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.mar import MAR
from vistok.train.sources import Draw
from vistok.train.tasks.mar import MARData, MARObjective, MARTask
from vistok.train.tasks.mar_distillation import Distillation
from vistok.train.tasks.scenes.plans import SILHOUETTE, silhouette_loss, silhouettes


@dataclass(frozen=True, kw_only=True)
class SupervisedMARData(MARData):
    """Entries of ``data``, beside those of MARData.

    Attributes:
        supervision: weights of the squared error of tokens and of the cross-entropy of silhouettes.
    """

    supervision: tuple[float, float]


class SupervisedMAR(MARObjective):
    """MARObjective and the supervision of the conditions.

    Args:
        mar, distillation: see MARObjective.
        supervision: see SupervisedMARData.
    """

    def __init__(self, mar: MAR, distillation: Distillation | None, supervision: tuple[float, float]):
        super().__init__(mar, distillation)
        self.supervision = supervision
        width = mar.config.decoder_embed_dim
        self.token = nn.Linear(width, mar.config.token_dim)
        self.silhouette = nn.Linear(width, SILHOUETTE**2)

    def forward(self, latents: Tensor, labels: Tensor, mask: Tensor, silhouettes: Tensor):
        """Returns the loss of a batch and its parts.

        Args:
            latents, labels, mask: see MAR.
            silhouettes: of tokens, see ``plans``, uint8 [B, L, SILHOUETTE^2].
        """
        tokens, z, loss, metrics = self.measure(latents, labels, mask)
        token = F.mse_loss(self.token(z[mask]).float(), tokens[mask])
        silhouette = silhouette_loss(self.silhouette(z[mask]), silhouettes[mask])
        loss = loss + self.supervision[0] * token + self.supervision[1] * silhouette
        return loss, {n: x.detach() for n, x in (metrics | {"token": token, "silhouette": silhouette}).items()}


class SupervisedMARTask(MARTask):
    """The ``mar`` task with ``data.supervision``: see SupervisedMARData."""

    data_class = SupervisedMARData

    def objective(self, distillation: Distillation | None) -> SupervisedMAR:
        if self.own is not None and any(self.data.supervision):
            raise VistokError("own pictures have no silhouettes to learn from: leave data.supervision out.")
        return SupervisedMAR(self.mar, distillation, self.data.supervision)

    def told(self, draw: Draw, mirrored: Tensor) -> dict[str, Tensor]:
        """Returns silhouettes of the tokens."""
        grid = self.mar.config.grid
        upright = silhouettes(self.source.scenes(draw.index), grid, self.data.size)
        cells = upright.view(-1, grid, grid, SILHOUETTE, SILHOUETTE)
        both = torch.stack([upright, cells.flip(2, 4).reshape(upright.shape)], 1)
        return {"silhouettes": both[torch.arange(len(mirrored)), mirrored]}
