"""LLaVA-NeXT: a thumbnail and crops, unpadded, with a newline after each row of crops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vistok.models.families.family import Ask, Family, Picture, run_tower, square
from vistok.models.families.llava import described, feature_settings, tower_layers
from vistok.models.families.plan import crops_plan, single_view_plan, unpadded
from vistok.models.families.tokens import Canvas


class LlavaNext(Family):
    """The family ``llava_next``."""

    def pictures(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[Picture]:
        from transformers.models.llava_next.modeling_llava_next import (
            get_anyres_image_grid_shape,
            image_size_to_num_patches,
        )

        base = model.base_model
        config, side = base.config, base.config.vision_config.image_size
        layer, strategy = feature_settings(base, inputs)
        sizes = [tuple(int(n) for n in size) for size in inputs["image_sizes"]]
        counts = [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in sizes]
        pixels = inputs["pixel_values"]
        if pixels.ndim == 5:
            pixels = torch.cat([views[:count] for views, count in zip(pixels, counts, strict=True)])
        output = run_tower(base.vision_tower, pixels, layer, ask(tower_layers(base)))
        grid = square(output.features.shape[1] - output.has_cls)
        start = 0
        for size, count in zip(sizes, counts, strict=True):
            views = output.of(slice(start, start + count))
            start += count
            rows, cols = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, side)
            if count == 1:
                plan, canvas = single_view_plan(grid[0] * grid[1], newline=True), None
            else:
                canvas = Canvas(rows, cols, *unpadded((rows * grid[0], cols * grid[1]), size))
                plan = crops_plan(grid, canvas)
            yield described(base, views, strategy, plan, canvas=canvas, newline=base.image_newline)
