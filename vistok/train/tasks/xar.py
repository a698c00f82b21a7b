"""Train xAR on the latents of pictures, from classes or captions, by noisy context learning (arXiv 2502.20388, section
3.2).

All entities of a picture are noisy, each to an extent of its own, and each is predicted from those before it as they
are. Of classes only those scenes are used that have one object; of a folder, the folders below it are the classes.
Captions are read by a frozen encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.models.xar import XAR
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw, Source
from vistok.train.tasks.latents import LatentData, LatentTask
from vistok.train.tasks.llamagen import frozen_caption_encoder


@dataclass(frozen=True, kw_only=True)
class XARInit:
    """Entries of ``init``.

    Attributes:
        kl: the autoencoder, or its folder.
        xar: weights to go on from; new ones of the shape ``model`` if absent.
        text_encoder: a caption encoder, or a generator that has one; without it the generator is one of classes.
    """

    kl: str
    xar: str | None = None
    text_encoder: str | None = None


class XARObjective(nn.Module):
    """The squared error of velocities.

    Args:
        xar: the generator.
    """

    def __init__(self, xar: XAR):
        super().__init__()
        self.xar = xar

    def forward(self, latents: Tensor, values: Tensor):
        """Returns the loss of a batch and its parts; arguments as of XAR."""
        loss = self.xar(latents, values)
        return loss, {"velocity": loss.detach()}


class XARTask(LatentTask):
    """The ``xar`` task: see LatentData and XARInit."""

    data_class = LatentData

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(self.data_class, recipe.data, "data")
        self.init = read_options(XARInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        self.text = frozen_caption_encoder(self.init.text_encoder)
        self.open(self.init.kl, by_class=self.text is None)
        if self.text is not None:
            self.check_captions(self.text)
        self.xar = self._generator()
        self.model = self.objective()

    def _generator(self) -> XAR:
        if self.text is None:
            shape = self.latent_shape()
        else:
            shape = self.token_shape() | {"caption_dim": self.text.dim, "caption_tokens": self.text.max_length}
        return start_network(XAR, self.init.xar, self.recipe.model, shape)

    def objective(self) -> XARObjective:
        """Returns what is trained."""
        return XARObjective(self.xar)

    def told(self, draw: Draw, mirrored: Tensor) -> dict[str, Tensor]:
        """Returns what the objective is told of pictures beside latents and classes; ``mirrored`` is 0 or 1, [B]."""
        return {}

    @torch.no_grad()
    def values(self, source: Source, draw: Draw) -> Tensor:
        """Returns what the generator is told of pictures: their classes, or the features of their captions."""
        if self.text is None:
            return source.labels(draw.index)
        return self.text(source.captions(draw))[0].float()

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures in a new order in each pass; those of classes are mirrored or not by a coin."""
        draw = self.source.draw(step * self.recipe.batch_size + rows.start, rows.stop - rows.start)
        latents, side = self.draw_latents(draw)
        values = self.labels[draw.index] if self.text is None else self.values(self.source, draw)
        return {"latents": latents, "values": values} | self.told(draw, side)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the loss of held-out pictures at fixed times and noise."""
        device = next(self.xar.parameters()).device
        held_out, index = self.source.held_out(), self.held_out_index()
        moments, values = self.held_out_moments(held_out, index), self.values(held_out, Draw(index, index * 0))
        torch.manual_seed(self.recipe.seed)
        return {"held_out_loss": float(self.xar(moments[:, 0, 0].float().to(device), values.to(device)))}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the generator as an embedded model."""
        self.xar.save_pretrained(directory, torch.float16)
        parts, task = {"tokenizer": self.data.tokenizer or self.init.kl}, "class-to-image"
        if self.text is not None:
            task = "text-to-image"
            parts["text_encoder"] = self.init.text_encoder
        self.write_card(directory, self.xar, task, "xar", metrics, steps, parts, "2502.20388")
