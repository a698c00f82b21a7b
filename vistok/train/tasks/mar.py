"""Train MAR on the latents of single-object scenes, with the published objective (arXiv 2406.11838, section 4).

A class of the scenes is the shape and colour of the first object. A picture of a class should show that and nothing
else, so only scenes with one object are used. Their latents' means and deviations are kept, upright and mirrored, and
drawn anew each time, as the published training does with cached moments.

The head's loss tells the transformer little: most of it is noise that nothing predicts. Two linear maps therefore read
from the conditions of hidden tokens what the token is, by squared error, and the silhouette of the object within it.
They serve training alone, and are ours. A draft learns from its target instead, see ``mar_distillation``.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import NUM_CLASSES, Scenes, render
from vistok.data.scenes.splits import HELD_OUT, single_object_scenes
from vistok.errors import VistokError
from vistok.models.mar import MAR, MARConfig
from vistok.tokenizers.kl import KLAutoencoder, Posterior
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.mar_distillation import Distillation, OwnPictures, Sampling
from vistok.train.tasks.scene_reader import SILHOUETTE, silhouette_loss, silhouettes

RATIO_MEAN, RATIO_STD = 1.0, 0.25  # published, of the mask ratio's normal law before it is truncated to [least, 1]


def draw_mask(batch: int, length: int, least: float, deviation: float = RATIO_STD) -> Tensor:
    """A training mask, bool [B, L]: random orders, and one ratio for the batch.

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
    """The published loss over hidden tokens, or the distance to a teacher, and deep supervision of the conditions.

    Args:
        mar: the generator.
        supervision: weights of the squared error of tokens and of the cross-entropy of silhouettes.
        distillation: from the generator that it learns from, if any.
    """

    def __init__(self, mar: MAR, supervision: tuple[float, float], distillation: Distillation | None = None):
        super().__init__()
        self.mar = mar
        self.distillation = distillation
        self.supervision = supervision
        width = mar.config.decoder_embed_dim
        self.token = nn.Linear(width, mar.config.token_dim)
        self.silhouette = nn.Linear(width, SILHOUETTE**2)

    def forward(self, latents: Tensor, labels: Tensor, mask: Tensor, silhouettes: Tensor):
        """Loss of a batch.

        Args:
            latents, labels, mask: see MAR.
            silhouettes: of tokens, see ``scene_reader``, uint8 [B, L, SILHOUETTE^2].
        """
        tokens = self.mar.patchify(latents)
        z = self.mar.conditions(tokens, mask, self.mar.condition(labels))
        if self.distillation is None:
            head = self.mar.head_loss(tokens, z, mask)
            told = {"head": head}
        else:
            distances = self.distillation(self.mar, tokens, z, mask, labels)
            head = sum(distances)
            told = distances._asdict()
        token = F.mse_loss(self.token(z[mask]).float(), tokens[mask])
        silhouette = silhouette_loss(self.silhouette(z[mask]), silhouettes[mask])
        loss = head + self.supervision[0] * token + self.supervision[1] * silhouette
        told |= {"token": token, "silhouette": silhouette}
        return loss, {name: x.detach() for name, x in told.items()}


class MARTask:
    """The ``mar`` task.

    ``init.kl`` names the autoencoder, or its folder, ``data.tokenizer`` the name under which the card lists it;
    ``init.mar`` names weights to go on from, ``init.teacher`` the generator that a draft is to draft for, and
    ``data.teacher`` how that samples (``mar_distillation.Sampling``); with ``data.own`` the draft draws a share of each
    batch itself (``mar_distillation.OwnPictures``).
    ``data.supervision`` holds the weights of the two terms beside the published one. ``data.mask_deviation`` widens the
    law of mask ratios: a small model learns from fuller contexts.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.kl = KLAutoencoder.from_pretrained(recipe.init["kl"]).requires_grad_(False)
        self.size = recipe.data["size"]
        self.mask_deviation = recipe.data.get("mask_deviation", RATIO_STD)
        if "mar" in recipe.init:
            mar = MAR.from_pretrained(recipe.init["mar"])
        else:
            shape = {
                "img_size": self.size,
                "vae_stride": self.kl.config.downsample,
                "vae_embed_dim": self.kl.config.z_channels,
                "class_num": NUM_CLASSES,
            }
            mar = MAR(MARConfig(**shape | recipe.model))
        self.mar = mar
        distillation = self.own = None
        if "teacher" in recipe.init:
            if "teacher" not in recipe.data:
                raise VistokError(
                    "a draft needs to know how its teacher samples: give data.teacher its guidance and steps."
                )
            if "own" in recipe.data and any(recipe.data.get("supervision", ())):
                raise VistokError("own pictures have no silhouettes to learn from: leave data.supervision out.")
            teacher = MAR.from_pretrained(recipe.init["teacher"]).float()
            sampling = Sampling(**recipe.data["teacher"])
            distillation = Distillation(mar, teacher, sampling)
            if "own" in recipe.data:
                self.own = OwnPictures(sampling, **recipe.data["own"])
        self.model = MARObjective(mar, tuple(recipe.data.get("supervision", (0.0, 0.0))), distillation)
        self.latents = self.silhouettes = self.labels = None

    def _moments(self, seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled means and deviations [count, 2, 2, c, h, w], upright and mirrored, silhouettes, and classes [count].

        Silhouettes are upright and mirrored too, uint8 [count, 2, L, SILHOUETTE^2].
        """
        moments, shapes, labels, chunk = [], [], [], 0
        while sum(map(len, labels)) < count:
            scenes = single_object_scenes(seed, chunk)
            moments.append(self._encode(render(scenes, self.size)))
            shapes.append(self._silhouettes(scenes))
            labels.append(scenes.label)
            chunk += 1
        return tuple(torch.cat(x)[:count] for x in (moments, shapes, labels))

    def _silhouettes(self, scenes: Scenes) -> Tensor:
        grid = self.mar.config.grid
        upright = silhouettes(scenes, grid, self.size)
        cells = upright.view(-1, grid, grid, SILHOUETTE, SILHOUETTE)
        return torch.stack([upright, cells.flip(2, 4).reshape(upright.shape)], 1)

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        device = next(self.mar.parameters()).device
        both = torch.stack([images, images.flip(-1)], 1).flatten(0, 1).to(device)
        kl = self.kl.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            posterior: Posterior = kl.posterior(both)
        pair = torch.stack([posterior.mean.float(), posterior.std.float()], 1) * kl.config.scaling_factor
        return pair.unflatten(0, (len(images), 2)).half().cpu()

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Scenes in the order of a fresh permutation for each pass, mirrored or not by a coin."""
        if self.latents is None:
            self.latents, self.silhouettes, self.labels = self._moments(
                self.recipe.data["seed"], self.recipe.data["scenes"]
            )
        size = self.recipe.batch_size
        epoch, place = divmod(step, len(self.labels) // size)
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(epoch))
        index = order[place * size : (place + 1) * size][rows]
        side = torch.randint(2, (len(index),))
        mean, std = self.latents[index, side].float().unbind(1)
        config = self.mar.config
        latents, labels = mean + std * torch.randn_like(std), self.labels[index]
        if self.own is not None:
            latents, labels = self.own.mix(self.mar, step, latents, labels)
        return {
            "latents": latents,
            "labels": labels,
            "silhouettes": self.silhouettes[index, side],
            "mask": draw_mask(size, config.seq_len, config.mask_ratio_min, self.mask_deviation)[rows],
        }

    def after_step(self, step: int) -> None:
        """Nothing happens between steps."""

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Loss of held-out scenes at fixed masks, steps and noise, in the published units."""
        device = next(self.mar.parameters()).device
        moments, _, labels = self._moments(HELD_OUT, self.recipe.data.get("eval_scenes", 128))
        torch.manual_seed(self.recipe.seed)
        config = self.mar.config
        mask = draw_mask(len(labels), config.seq_len, config.mask_ratio_min, self.mask_deviation)
        loss = self.mar(moments[:, 0, 0].float().to(device), labels.to(device), mask.to(device))
        return {"held_out_loss": float(loss)}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the generator as an embedded model."""
        self.mar.save_pretrained(directory, torch.float16)
        parts = {"tokenizer": self.recipe.data["tokenizer"]}
        if "teacher" in self.recipe.init:
            parts["target"] = self.recipe.init["teacher"]
        write_training_card(
            directory,
            self.recipe,
            self.mar,
            "class-to-image",
            "mar",
            metrics,
            steps,
            parts,
            "2406.11838",
            data=f"vistok.data.scenes of one object, seed {self.recipe.data['seed']}",
        )
