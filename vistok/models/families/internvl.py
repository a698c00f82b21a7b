"""InternVL: tiles and thumbnail, each a picture of its own to the model, whose tokens are blocks of patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families.family import Ask, Family, Picture, run_tower, square
from vistok.models.families.llava import feature_settings, tower_layers
from vistok.models.families.plan import single_view_plan
from vistok.models.families.tokens import ImageTokens


class InternVL(Family):
    """The family ``internvl``."""

    features = "flat"

    def pictures(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[Picture]:
        base = model.base_model
        layer, strategy = feature_settings(base, inputs)
        needs = ask(tower_layers(base))
        if needs.states:
            raise VistokError(
                "InternVL's tokens are blocks of patches, so the tower's hidden states are no tokens: choose a method "
                "that reads none, such as vtc-cls or divprune."
            )
        output = run_tower(base.vision_tower, inputs["pixel_values"].to(base.dtype), layer, needs)
        features = output.features[:, 1:] if strategy == "default" else output.features
        grid = square(features.shape[1])
        packed = base.pixel_shuffle(features.unflatten(1, grid), scale_factor=base.config.downsample_ratio)
        block = round(1 / base.config.downsample_ratio)
        plan = single_view_plan(packed.shape[1] * packed.shape[2])
        for i in range(len(packed)):
            hidden = packed[i : i + 1].flatten(1, 2)
            attention = output.of(slice(i, i + 1)).attention
            image = ImageTokens(
                hidden=hidden,
                grid=tuple(packed.shape[1:3]),
                project=base.multi_modal_projector,
                layers=tower_layers(base),
                valid=torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device),
                attention={j: replace(a, pool=partial(block_mean, block)) for j, a in attention.items()},
            )
            yield image, plan

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        return got_ocr2_tiles(images, picture, tiles)


def got_ocr2_tiles(images: Any, picture: Image.Image, tiles: int) -> tuple[int, int]:
    """Returns rows and columns of tiles of GOT-OCR 2's image processor, see ``Family.arrangement``."""
    if tiles == 1:
        return 1, 1
    from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

    height, width = images.size["height"], images.size["width"]
    size = (picture.height, picture.width)
    cols, rows = get_optimal_tiled_canvas(size, (height, width), images.min_patches, images.max_patches)
    return rows, cols


def block_mean(block: int, scores: Tensor) -> Tensor:
    """Returns the mean of patch scores [..., P] over each block of a square grid, [..., P / block^2]."""
    side = round(scores.shape[-1] ** 0.5)
    flat = scores.reshape(-1, 1, side, side)
    return F.avg_pool2d(flat, block).flatten(1).unflatten(0, scores.shape[:-1])
