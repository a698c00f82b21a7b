"""Idefics3 and SmolVLM: tiles with texts between them and the whole picture last, blocks of patches as tokens."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import nn

from vistok.errors import VistokError
from vistok.models.families.capture import attention_layers
from vistok.models.families.encoded import EncodedFamily, Tile
from vistok.models.families.family import square


class Idefics3(EncodedFamily):
    """The families ``idefics3`` and ``smolvlm``."""

    def backbone(self, model: nn.Module) -> nn.Module:
        return model.base_model.text_model

    def modules(self, base: nn.Module) -> list[nn.Module]:
        return attention_layers(base.vision_model)

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        mask = inputs.get("pixel_attention_mask")
        samples = base.get_image_features(inputs["pixel_values"], mask, return_dict=True).pooler_output
        config = base.config
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        grid = square(patches // config.scale_factor**2)
        return [Tile(tokens, grid) for sample in samples for tokens in sample.split(grid[0] * grid[1])]

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        if tiles == 1:
            return 1, 1
        layout = images(images=picture, return_row_col_info=True)
        rows, cols = layout["rows"][0][0], layout["cols"][0][0]
        if rows * cols != tiles - 1:
            raise VistokError(f"the model saw {tiles} tiles, and the picture makes {rows}x{cols} and the whole.")
        return rows, cols
