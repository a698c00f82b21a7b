"""Qwen2-VL and 2.5-VL: pictures of any size, with positions of three axes, seen after the tower's 2x2 merging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families.family import Ask, Family, Picture
from vistok.models.families.plan import single_view_plan
from vistok.models.families.tokens import ImageTokens, Needs


class Qwen2VL(Family):
    """``qwen2_vl`` and ``qwen2_5_vl``."""

    position_axes = 3

    def position_offset(self, model: nn.Module) -> Tensor | int:
        delta = model.base_model.rope_deltas
        return 0 if delta is None else delta

    def pictures(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[Picture]:
        tower, grids = model.base_model.visual, inputs["image_grid_thw"].tolist()
        layers = len(tower.blocks)
        if ask(layers) != Needs():
            raise VistokError(
                "the Qwen-VL tower has no CLS token, whose attention this method reads: use divprune, tome, uniform or "
                "random."
            )
        merge = tower.spatial_merge_size
        output = tower(inputs["pixel_values"].type(tower.dtype), grid_thw=inputs["image_grid_thw"], return_dict=True)
        lengths = [t * h * w // merge**2 for t, h, w in grids]
        for features, (t, h, w) in zip(output.pooler_output.split(lengths), grids, strict=True):
            hidden = features[None]
            image = ImageTokens(
                hidden=hidden,
                grid=(t * h // merge, w // merge),
                project=nn.Identity(),
                layers=layers,
                valid=torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device),
            )
            yield image, single_view_plan(hidden.shape[1])

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        return 1, 1
