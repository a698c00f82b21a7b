"""Train xAR on the latents of pictures of classes, by noisy context learning (arXiv 2502.20388, section 3.2).

All entities of a picture are noisy, each to an extent of its own, and each is predicted from those before it as they
are. Of the scenes only those with one object are used; of a folder, the folders below it are the classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.models.xar import XAR, XARConfig
from vistok.train.options import check_agreement, check_shape, read_options
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw
from vistok.train.tasks.latents import LatentData, LatentTask


@dataclass(frozen=True, kw_only=True)
class XARInit:
    """Entries of ``init``.

    Attributes:
        kl: the autoencoder, or its folder.
        xar: weights to go on from; new ones of the shape ``model`` if absent.
    """

    kl: str
    xar: str | None = None


class XARObjective(nn.Module):
    """The squared error of velocities.

    Args:
        xar: the generator.
    """

    def __init__(self, xar: XAR):
        super().__init__()
        self.xar = xar

    def forward(self, latents: Tensor, labels: Tensor):
        """Returns the loss of a batch and its parts; arguments as of XAR."""
        loss = self.xar(latents, labels)
        return loss, {"velocity": loss.detach()}


class XARTask(LatentTask):
    """The ``xar`` task: see LatentData and XARInit."""

    data_class = LatentData

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(self.data_class, recipe.data, "data")
        self.init = read_options(XARInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        self.open(self.init.kl)
        self.xar = self._generator()
        self.model = self.objective()

    def _generator(self) -> XAR:
        shape = self.latent_shape()
        if self.init.xar is None:
            return XAR(read_options(XARConfig, self.recipe.model, "model", shape))
        xar = XAR.from_pretrained(self.init.xar)
        check_agreement(xar.config, self.recipe.model, "model")
        check_shape(xar.config, shape, self.init.xar)
        return xar

    def objective(self) -> XARObjective:
        """Returns what is trained."""
        return XARObjective(self.xar)

    def told(self, draw: Draw, mirrored: Tensor) -> dict[str, Tensor]:
        """Returns what the objective is told of pictures beside latents and classes; ``mirrored`` is 0 or 1, [B]."""
        return {}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures in a new order in each pass, mirrored or not by a coin."""
        draw = self.source.draw(step * self.recipe.batch_size + rows.start, rows.stop - rows.start)
        latents, side = self.draw_latents(draw)
        return {"latents": latents, "labels": self.labels[draw.index]} | self.told(draw, side)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the loss of held-out pictures at fixed times and noise."""
        device = next(self.xar.parameters()).device
        held_out, index = self.source.held_out(), self.held_out_index()
        moments, labels = self.held_out_moments(held_out, index), held_out.labels(index)
        torch.manual_seed(self.recipe.seed)
        return {"held_out_loss": float(self.xar(moments[:, 0, 0].float().to(device), labels.to(device)))}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the generator as an embedded model."""
        self.xar.save_pretrained(directory, torch.float16)
        parts = {"tokenizer": self.data.tokenizer or self.init.kl}
        self.write_card(directory, self.xar, "class-to-image", "xar", metrics, steps, parts, "2502.20388")
