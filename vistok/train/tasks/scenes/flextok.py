"""What scenes' labels teach a FlexTok, in place of the published alignment with DINOv2 (REPA).

Linear maps read from the aligned patches which kind of object each shows, and its silhouette. Another head reads from
the first token the kind of a largest object (any of them will do), so that a single token already stands for a
plausible scene. All heads serve training alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import NUM_CLASSES
from vistok.data.scenes.world import COLOURS, SHAPES
from vistok.eval.scene_detector import detect
from vistok.tokenizers.flextok import FlowDraws
from vistok.train.sources import Draw
from vistok.train.tasks.flextok import FlexTokData, FlexTokObjective, FlexTokTask
from vistok.train.tasks.scenes.plans import SILHOUETTE, plan, silhouette_loss, silhouettes
from vistok.train.tasks.starts.flextok import OrderedComponents


@dataclass(frozen=True, kw_only=True)
class SupervisedFlexTokData(FlexTokData):
    """Entries of ``data``, beside those of FlexTokData.

    Attributes:
        supervision: weights of the cross-entropy of the patches' kinds, of the first token, and of silhouettes.
    """

    supervision: tuple[float, float, float]
    saturation: float = 1.0


class SupervisedFlexTok(FlexTokObjective):
    """FlexTokObjective and the cross-entropies of the three heads.

    Args:
        supervision: their weights: of patches, of the first token, of silhouettes.
        tokenizer, saturation, anchor, anchor_weight: see FlexTokObjective.
    """

    def __init__(self, supervision: tuple[float, float, float], *args, **options):
        super().__init__(*args, **options)
        config = self.tokenizer.config
        self.supervision = supervision
        self.patches = nn.Linear(config.decoder[0], NUM_CLASSES + 1)
        self.silhouettes = nn.Linear(config.decoder[0], SILHOUETTE**2)
        self.first = nn.Sequential(nn.Linear(len(config.levels), 256), nn.GELU(), nn.Linear(256, NUM_CLASSES))

    def forward(self, maps: Tensor, cells: Tensor, told: Tensor, kinds: Tensor, **draws: Tensor):
        """Returns the loss of a batch and its parts.

        Args:
            maps: latents [B, C, h, w].
            cells: kind of object that each patch shows, NUM_CLASSES where there is none, [B, patches].
            told: silhouettes of the patches, see ``plans``, uint8 [B, patches, SILHOUETTE^2].
            kinds: whether each kind is among the picture's largest objects, bool [B, NUM_CLASSES].
            draws: the fields of ``FlowDraws``.
        """
        out, loss, metrics = self.measure(maps, FlowDraws(**draws))
        patches = F.cross_entropy(self.patches(out.features).flatten(0, 1).float(), cells.flatten().long())
        likely = self.first(out.codes[:, 0]).float().log_softmax(-1)
        first = -likely.masked_fill(~kinds, -torch.inf).logsumexp(-1).mean()
        shapes = silhouette_loss(self.silhouettes(out.features), told)
        read = {"patches": patches, "first": first, "silhouettes": shapes}
        loss = loss + sum(weight * x for weight, x in zip(self.supervision, read.values(), strict=True))
        return loss, {name: x.detach() for name, x in (metrics | read).items()}


def right_class(images: Tensor, kinds: Tensor) -> float:
    """Returns the share of pictures [B, 3, H, W] whose largest object is of one of the kinds [B, NUM_CLASSES]."""
    right = 0
    for found, expected in zip(detect(images.clamp(-1, 1)), kinds, strict=True):
        if found:
            right += int(expected[SHAPES.index(found[0].shape) * len(COLOURS) + COLOURS.index(found[0].colour)])
    return right / len(images)


class SupervisedFlexTokTask(FlexTokTask):
    """The ``flextok`` task with ``data.supervision``: see SupervisedFlexTokData."""

    data_class = SupervisedFlexTokData

    def objective(self, anchor: OrderedComponents | None) -> SupervisedFlexTok:
        weights = {"saturation": self.data.saturation, "anchor": anchor, "anchor_weight": self.data.anchor or 0.0}
        return SupervisedFlexTok(self.data.supervision, self.tokenizer, **weights)

    def labels(self, draw: Draw) -> dict[str, Tensor]:
        """Returns kinds and silhouettes of the patches, and the kinds of the largest objects."""
        scenes = self.source.scenes(draw.index)
        grid, side = self.tokenizer.config.grid, self.tokenizer.config.image_size
        return {
            "cells": plan(scenes, grid, side).cells,
            "told": silhouettes(scenes, grid, side),
            "kinds": scenes.largest_kinds,
        }

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns those of FlexTokTask, and the share of right classes at few, some and all tokens."""
        self._outputs: dict[int, list[Tensor]] = {}
        metrics = super().evaluate()
        kinds = self.source.held_out().scenes(self.held_out_index()).kinds_present
        return metrics | {f"right_class_{n}": right_class(torch.cat(x), kinds) for n, x in self._outputs.items()}

    def on_outputs(self, tokens: int, images: Tensor) -> None:
        self._outputs.setdefault(tokens, []).append(images.cpu())
