"""LLaVA-OneVision: the whole picture and crops as LLaVA-NeXT, but large canvases are shrunk after the projector.

A shrunk canvas is a picture of its own to a compressor, whose tokens are those that the language model would get.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.families.family import Ask, Picture, TowerOutput, run_tower, square
from vistok.models.families.llava import described, feature_settings, tower_layers
from vistok.models.families.llava_next import LlavaNext
from vistok.models.families.plan import Plan, crops_plan, rows_plan, single_view_plan, unpadded
from vistok.models.families.tokens import Canvas, ImageTokens

SLACK = 1.1  # a canvas is shrunk where its side exceeds the longest by more


class LlavaOnevision(LlavaNext):
    """The family ``llava_onevision``."""

    def pictures(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[Picture]:
        from transformers.models.llava_onevision.modeling_llava_onevision import (
            get_anyres_image_grid_shape,
            image_size_to_num_patches,
        )

        base = model.base_model
        config, side = base.config, base.config.vision_config.image_size
        layer, strategy = feature_settings(base, inputs)
        sizes = [tuple(int(n) for n in size) for size in inputs["image_sizes"]]
        together = inputs.get("batch_num_images")
        alone = [True] * len(sizes) if together is None else [n == 1 for n in together.tolist() for _ in range(n)]
        counts = [
            image_size_to_num_patches(size, config.image_grid_pinpoints, side) if cropped else 1
            for size, cropped in zip(sizes, alone, strict=True)
        ]
        pixels = inputs["pixel_values"]
        if pixels.ndim == 5:
            pixels = torch.cat([views[:count] for views, count in zip(pixels, counts, strict=True)])
        output = run_tower(base.vision_tower, pixels, layer, ask(tower_layers(base)))
        grid = square(output.features.shape[1] - (strategy == "default"))
        ratio = inputs.get("vision_aspect_ratio") or config.vision_aspect_ratio
        most = int(ratio.removeprefix("anyres_max_"))
        start = 0
        for size, count in zip(sizes, counts, strict=True):
            views = output.of(slice(start, start + count))
            start += count
            if count == 1:
                plan = single_view_plan(grid[0] * grid[1], newline=True)
                yield described(base, views, strategy, plan, newline=base.image_newline)
                continue
            rows, cols = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, side)
            canvas = Canvas(rows, cols, *unpadded((rows * grid[0], cols * grid[1]), size))
            height, width = canvas.bottom - canvas.top, canvas.right - canvas.left
            shrink = (height * width / (most * grid[0] ** 2)) ** 0.5
            if shrink <= SLACK:
                plan = crops_plan(grid, canvas)
                yield described(base, views, strategy, plan, canvas=canvas, newline=base.image_newline)
                continue
            yield described(base, views.of(slice(0, 1)), strategy, single_view_plan(grid[0] * grid[1]))
            shape = (int(height // shrink), int(width // shrink))
            yield shrunk(base, views.of(slice(1, count)), partial(canvas_map, grid, canvas, shape), shape)

    def videos(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[list[Picture]]:
        """Yields the frames of videos, shrunk to half their sides behind the projector; a newline ends a video."""
        base = model.base_model
        layer, strategy = feature_settings(base, inputs)
        pixels = inputs["pixel_values_videos"]
        output = run_tower(base.vision_tower, pixels.flatten(0, 1), layer, ask(tower_layers(base)))
        grid = square(output.features.shape[1] - (strategy == "default"))
        shape = tuple(-(-side // 2) for side in grid)
        count = pixels.shape[1]
        for first in range(0, len(output.features), count):
            frames = [output.of(slice(i, i + 1)) for i in range(first, first + count)]
            pictures = [shrunk(base, frame, partial(halved, grid, shape), shape) for frame in frames]
            plans = [single_view_plan(shape[0] * shape[1], newline=i == count - 1) for i in range(count)]
            yield [(image, plan) for (image, _), plan in zip(pictures, plans, strict=True)]

    def encoded_videos(self, features: list[Tensor], levels: list[list[Tensor]]) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=torch.cat(features)[None])


def shrunk(base: nn.Module, crops: TowerOutput, shrink: Any, shape: tuple[int, int]) -> tuple[ImageTokens, Plan]:
    """Returns the shrunk canvas of a picture's crops, with a newline after each row."""
    features = crops.features[:, 1:] if crops.has_cls else crops.features
    hidden = shrink(base.multi_modal_projector(features).movedim(-1, 1)).movedim(1, -1)
    image = ImageTokens(
        hidden=hidden,
        grid=shape,
        project=nn.Identity(),
        layers=tower_layers(base),
        valid=torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device),
        newline=base.image_newline,
        attention={i: replace(a, pool=shrink) for i, a in crops.attention.items()},
    )
    return image, rows_plan(shape)


def canvas_map(grid: tuple[int, int], canvas: Canvas, shape: tuple[int, int], values: Tensor) -> Tensor:
    """Returns values of crops [V, ..., P] on their canvas without padding, shrunk bilinearly, [1, ..., rows * cols]."""
    values = values.unflatten(-1, grid).unflatten(0, (canvas.rows, canvas.cols))
    whole = values.movedim((0, 1), (-4, -2)).flatten(-4, -3).flatten(-2)
    whole = whole[..., canvas.top : canvas.bottom, canvas.left : canvas.right]
    flat = whole.reshape(1, -1, *whole.shape[-2:])
    small = F.interpolate(flat, shape, mode="bilinear")
    return small.view(1, *whole.shape[:-2], shape[0] * shape[1])


def halved(grid: tuple[int, int], shape: tuple[int, int], values: Tensor) -> Tensor:
    """Returns values of a frame [1, ..., P] shrunk bilinearly to a grid of another shape, [1, ..., N]."""
    flat = values.reshape(1, -1, *grid)
    return F.interpolate(flat, shape, mode="bilinear").reshape(*values.shape[:-1], shape[0] * shape[1])
