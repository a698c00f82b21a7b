"""Pre-train by TokenUnify's mixture (arXiv 2405.16847): random tokens, the next token, and all that come next.

Published training first predicts pictures from random parts of them, then the token after a prefix and the picture from
that prefix, with equal weights. Here every step has the weights of its stage, so any mixture and any order of them can
be trained, and single objectives beside them at equal steps.

Pictures may be grey (``model.channels: 1``), and volumes (``data.source: volumes``) are arrays of three dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.vision.tokenunify import TokenUnify, hide_random, keep_first
from vistok.ops.noise import derive_seed
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import PictureData, ScenesSource, Source, open_source
from vistok.train.sources.volumes import open_volumes
from vistok.train.tasks.pictures import PictureTask

OBJECTIVES = ("random", "next", "next_all")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The weights of the objectives from a step on.

    Attributes:
        start: first step, counted from 0.
        random: weight of predicting the picture from a random part of its tokens.
        next: of predicting the token after a prefix.
        next_all: of predicting the picture from a prefix.
    """

    start: int = 0
    random: float = 0.0
    next: float = 0.0
    next_all: float = 0.0


@dataclass(frozen=True, kw_only=True)
class TokenUnifyData(PictureData):
    """Entries of ``data`` of the ``tokenunify`` task, beside those of PictureData.

    Attributes:
        source: as in PictureData, or ``volumes``, a folder of ``.npy`` arrays [D, H, W].
        stages: weights of the objectives, in the order of their first steps.
        fill: what hidden tokens become: standard normal ``noise``, or ``zero``.
        hidden: shares of tokens that random prediction hides, drawn evenly between these two.
        probe_scenes: scenes that the segmentation probe learns on; 0 leaves it out.
    """

    source: Literal["scenes", "folder", "volumes"] = "scenes"
    stages: tuple[Stage, ...]
    fill: Literal["noise", "zero"] = "noise"
    hidden: tuple[float, float] = (0.2, 0.8)
    probe_scenes: int = 256


@dataclass(frozen=True, kw_only=True)
class TokenUnifyInit:
    """Entries of ``init``.

    Attributes:
        network: weights to go on from; new ones of the shape ``model`` if absent.
    """

    network: str | None = None


class TokenUnifyObjective(nn.Module):
    """The weighted squared errors of pixels in [0, 1].

    Args:
        network: what is trained.
    """

    def __init__(self, network: TokenUnify):
        super().__init__()
        self.network = network

    def forward(
        self,
        images: Tensor,
        weights: Tensor,
        share: Tensor,
        order: Tensor,
        prefix: Tensor,
        random_fill: Tensor | None = None,
        prefix_fill: Tensor | None = None,
    ):
        """Returns the loss of pictures and its parts; objectives without weight are not computed.

        Shape:
            images: [B, C, *sides] in [0, 1].
            weights: of random, next and next-all prediction, [3].
            share: of tokens that are hidden at random, [B].
            order: uniform numbers that say which, [B, N].
            prefix: tokens before the next one, int64 [B].
            random_fill, prefix_fill: what hidden tokens become, [B, N, numbers]; zeros if None.
        """
        network = self.network
        tokens = network.split(images)
        losses: dict[str, Tensor] = {}
        if weights[0]:
            hidden = hide_random(tokens, share, order, random_fill)
            losses["random"] = F.mse_loss(network.predict(network.features(hidden)).float(), tokens)
        if weights[1:].any():
            masked, target = keep_first(tokens, prefix, prefix_fill)
            features = network.features(masked)
            losses["next"] = F.mse_loss(network.predict_next(features).float(), target)
            losses["next_all"] = F.mse_loss(network.predict(features).float(), tokens)
        weight = dict(zip(OBJECTIVES, weights, strict=True))
        loss = sum((weight[name] * value for name, value in losses.items()), tokens.new_zeros(()))
        return loss, {name: value.detach() for name, value in losses.items()}


class TokenUnifyTask(PictureTask):
    """The ``tokenunify`` task: see TokenUnifyData and TokenUnifyInit; pictures have the network's size."""

    data: TokenUnifyData

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(TokenUnifyData, recipe.data, "data")
        init = read_options(TokenUnifyInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        self.network = start_network(TokenUnify, init.network, recipe.model)
        self._check()
        self.source = self._open()
        self.model = TokenUnifyObjective(self.network)

    def _check(self) -> None:
        config, starts = self.network.config, [stage.start for stage in self.data.stages]
        if not starts or starts[0] != 0 or sorted(set(starts)) != starts:
            raise VistokError(f"'data.stages' begin with 'start: 0', each later than the one before, got {starts}.")
        for stage in self.data.stages:
            if min(weights_of(stage)) < 0 or not any(weights_of(stage)):
                raise VistokError(
                    f"the stage from step {stage.start} needs a weight of {', '.join(OBJECTIVES)} above 0."
                )
        least, most = self.data.hidden
        if not 0 <= least <= most <= 1:
            raise VistokError(f"'data.hidden' are two shares from 0 to 1, the smaller first, got {[least, most]}.")
        if len(config.patch) != len(config.grid) or len(config.patch) not in (2, 3):
            raise VistokError("'model.patch' and 'model.grid' have two sides of pictures, or three of volumes.")
        if config.tokens < 2:
            raise VistokError("'model.grid' needs two patches at least, as one is predicted from the others.")
        if (len(config.patch) == 3) != (self.data.source == "volumes"):
            raise VistokError(
                "volumes (data.source: volumes) need patches of three sides, and pictures of two: set 'model.patch'."
            )

    def _open(self) -> Source:
        config = self.network.config
        sides = [n * p for n, p in zip(config.grid, config.patch, strict=True)]
        if self.data.source == "volumes":
            return open_volumes(self.data, tuple(sides))
        if sides[0] != sides[1] or config.channels not in (1, 3):
            raise VistokError(
                f"pictures are squares of 1 or 3 channels, the shape 'model' reads {sides} of {config.channels}."
            )
        return open_source(self.data, sides[0])

    def _pixels(self, images: Tensor) -> Tensor:
        """Pictures in [-1, 1] to what the network reads, in [0, 1]."""
        if self.data.source == "volumes":
            return images
        images = (images + 1) / 2
        return images if self.network.config.channels == 3 else images.mean(1, keepdim=True)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures, what is hidden of each, and the weights of the step's stage."""
        config, size = self.network.config, self.recipe.batch_size
        generator = torch.Generator().manual_seed(derive_seed(self.data.seed, step))
        stage = [each for each in self.data.stages if each.start <= step][-1]
        least, most = self.data.hidden
        drawn: dict[str, Tensor] = {
            "share": least + (most - least) * torch.rand(size, generator=generator),
            "order": torch.rand(size, config.tokens, generator=generator),
            "prefix": torch.randint(1, config.tokens, (size,), generator=generator),
        }
        if self.data.fill == "noise":
            for name in ("random_fill", "prefix_fill"):
                drawn[name] = torch.randn(size, config.tokens, config.numbers, generator=generator)
        images = self._pixels(self.draw_pictures(step, rows))
        told = {name: each[rows] for name, each in drawn.items()}
        return {"images": images, "weights": torch.tensor(weights_of(stage))} | told

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns the squared errors of held-out pictures, and of scenes the probe of their segmentation."""
        sums: dict[str, float] = {}
        device, count = self.network.pos_embed.device, 0
        for images in self.held_out_pictures(self.recipe.batch_size):
            generator = torch.Generator().manual_seed(derive_seed(self.data.seed, 1 << 32, count))
            rows, config = len(images), self.network.config
            order = torch.rand(rows, config.tokens, generator=generator)
            prefix = torch.randint(1, config.tokens, (rows,), generator=generator)
            fill = torch.zeros(rows, config.tokens, config.numbers)
            if self.data.fill == "noise":
                fill = torch.randn(fill.shape, generator=generator)
            told = (self._pixels(images), torch.ones(3), torch.full((rows,), 0.5), order, prefix, fill, fill)
            for name, value in self.model(*(each.to(device) for each in told))[1].items():
                sums[name] = sums.get(name, 0.0) + rows * float(value)
            count += rows
        metrics = {f"held_out_{name}": value / count for name, value in sums.items()}
        if isinstance(self.source, ScenesSource) and self.data.probe_scenes:
            from vistok.train.tasks.scenes.segmentation import segmentation_probe

            metrics |= segmentation_probe(self.features, self.source.held_out(), self.data.probe_scenes)
        return metrics

    def features(self, images: Tensor) -> Tensor:
        """Returns the frozen features [B, N, width] of whole pictures [B, 3, H, W] in [-1, 1], on the CPU."""
        pixels = self._pixels(images.to(self.network.pos_embed.device))
        return self.network.features(self.network.split(pixels)).float().cpu()

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the network as an embedded model."""
        self.network.save_pretrained(directory, torch.float16)
        self.write_card(directory, self.network, "features", "tokenunify", metrics, steps, paper="2405.16847")


def weights_of(stage: Stage) -> tuple[float, float, float]:
    """Returns a stage's weights in the order of ``OBJECTIVES``."""
    return stage.random, stage.next, stage.next_all
