"""Train MAR on the latents of pictures of classes, with the published objective (arXiv 2406.11838, section 4).

Pictures' means and deviations are kept, upright and mirrored, and drawn anew each time, as the published training does
with cached moments. A class should say all that there is to say about a picture: of the scenes only those with one
object are used; of a folder, the folders below it are the classes. A draft learns from its target instead, see
``mar_distillation``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.mar import MAR
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw
from vistok.train.tasks.latents import LatentData, LatentTask
from vistok.train.tasks.mar_distillation import Distillation, OwnPictures, OwnShare, Sampling

RATIO_MEAN, RATIO_STD = 1.0, 0.25  # published, of the mask ratio's normal law before it is truncated to [least, 1]


@dataclass(frozen=True, kw_only=True)
class MARData(LatentData):
    """Entries of ``data`` of the ``mar`` task, beside those of LatentData.

    Attributes:
        mask_deviation: of the normal law of mask ratios. A small model learns from fuller contexts than the published.
        teacher: how the generator ``init.teacher`` samples, see ``mar_distillation.Sampling``.
        own: share of a batch that a draft draws itself, see ``mar_distillation.OwnShare``.
    """

    mask_deviation: float = RATIO_STD
    teacher: Sampling | None = None
    own: OwnShare | None = None


@dataclass(frozen=True, kw_only=True)
class MARInit:
    """Entries of ``init``.

    Attributes:
        kl: the autoencoder, or its folder.
        mar: weights to go on from; new ones of the shape ``model`` if absent.
        teacher: the generator that a draft is to draft for.
    """

    kl: str
    mar: str | None = None
    teacher: str | None = None


def draw_mask(batch: int, length: int, least: float, deviation: float = RATIO_STD) -> Tensor:
    """Returns a training mask, bool [B, L]: random orders, and one ratio for the batch.

    Args:
        batch, length: B and L.
        least: the smallest share of hidden tokens.
        deviation: of the ratio's normal law, before it is truncated.
    """
    low, high = (torch.special.ndtr(torch.tensor((x - RATIO_MEAN) / deviation)) for x in (least, 1.0))
    ratio = RATIO_MEAN + deviation * float(torch.special.ndtri(low + (high - low) * torch.rand(())))
    hidden = math.ceil(length * min(max(ratio, least), 1.0))
    return torch.rand(batch, length).argsort(1).argsort(1) < hidden


class MARObjective(nn.Module):
    """The published loss over hidden tokens, or the distance to a teacher.

    Args:
        mar: the generator.
        distillation: from the generator that it learns from, if any.
    """

    def __init__(self, mar: MAR, distillation: Distillation | None = None):
        super().__init__()
        self.mar = mar
        self.distillation = distillation

    def measure(self, latents: Tensor, labels: Tensor, mask: Tensor):
        """Returns tokens and their conditions, the loss, and its parts; arguments as of MAR."""
        tokens = self.mar.own_tokens(latents)
        z = self.mar.conditions(tokens, mask, self.mar.condition(labels))
        if self.distillation is None:
            loss = self.mar.head_loss(tokens, z, mask)
            return tokens, z, loss, {"head": loss}
        distances = self.distillation(self.mar, tokens, z, mask, labels)
        return tokens, z, sum(distances), distances._asdict()

    def forward(self, latents: Tensor, labels: Tensor, mask: Tensor):
        """Returns the loss of a batch and its parts; arguments as of MAR."""
        _, _, loss, metrics = self.measure(latents, labels, mask)
        return loss, {name: x.detach() for name, x in metrics.items()}


class MARTask(LatentTask):
    """The ``mar`` task: see MARData and MARInit."""

    data_class = MARData

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(self.data_class, recipe.data, "data")
        self.init = read_options(MARInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        self.open(self.init.kl)
        self.mar = start_network(MAR, self.init.mar, recipe.model, self.latent_shape())
        self.own: OwnPictures | None = None
        self.model = self.objective(self._distillation())

    def _distillation(self) -> Distillation | None:
        if self.init.teacher is None:
            if strange := [name for name in ("teacher", "own") if getattr(self.data, name) is not None]:
                raise VistokError(f"'data.{strange[0]}' is for drafts: name their target as 'init.teacher'.")
            return None
        if self.data.teacher is None:
            raise VistokError(
                "a draft needs to know how its teacher samples: give data.teacher its guidance and steps."
            )
        teacher = MAR.from_pretrained(self.init.teacher).float()
        distillation = Distillation(self.mar, teacher, self.data.teacher)
        if self.data.own is not None:
            self.own = OwnPictures(self.data.teacher, self.data.own)
        return distillation

    def objective(self, distillation: Distillation | None) -> MARObjective:
        """Returns what is trained."""
        return MARObjective(self.mar, distillation)

    def told(self, draw: Draw, mirrored: Tensor) -> dict[str, Tensor]:
        """Returns what the objective is told of pictures beside latents and classes; ``mirrored`` is 0 or 1, [B]."""
        return {}

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures in a new order in each pass, mirrored or not by a coin."""
        size = self.recipe.batch_size
        draw = self.source.draw(step * size + rows.start, rows.stop - rows.start)
        latents, side = self.draw_latents(draw)
        config, labels = self.mar.config, self.labels[draw.index]
        if self.own is not None:
            latents, labels = self.own.mix(self.mar, step, latents, labels)
        mask = draw_mask(size, config.seq_len, config.mask_ratio_min, self.data.mask_deviation)[rows]
        return {"latents": latents, "labels": labels, "mask": mask} | self.told(draw, side)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the loss of held-out pictures at fixed masks, steps and noise, in the published units."""
        device = next(self.mar.parameters()).device
        held_out, index = self.source.held_out(), self.held_out_index()
        moments, labels = self.held_out_moments(held_out, index), held_out.labels(index)
        torch.manual_seed(self.recipe.seed)
        config = self.mar.config
        mask = draw_mask(len(labels), config.seq_len, config.mask_ratio_min, self.data.mask_deviation)
        loss = self.mar(moments[:, 0, 0].float().to(device), labels.to(device), mask.to(device))
        return {"held_out_loss": float(loss)}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the generator as an embedded model."""
        self.mar.save_pretrained(directory, torch.float16)
        parts = {"tokenizer": self.data.tokenizer or self.init.kl}
        if self.init.teacher is not None:
            parts["target"] = self.init.teacher
        self.write_card(directory, self.mar, "class-to-image", "mar", metrics, steps, parts, "2406.11838")
