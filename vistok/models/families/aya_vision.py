"""Aya Vision: square tiles through SigLIP, blocks of 2x2 patches as tokens, and the whole picture last."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import nn

from vistok.models.families.encoded import EncodedFamily, Tile
from vistok.models.families.family import square
from vistok.models.families.internvl import got_ocr2_tiles
from vistok.models.families.llava import feature_settings


class AyaVision(EncodedFamily):
    """The family ``aya_vision``; tiles are pictures of their own."""

    features = "flat"

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        layer, strategy = feature_settings(base, inputs)
        output = base.get_image_features(
            inputs["pixel_values"],
            vision_feature_layer=layer,
            vision_feature_select_strategy=strategy,
            return_dict=True,
        )
        return [Tile(tokens, square(len(tokens))) for tokens in output.pooler_output]

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        return got_ocr2_tiles(images, picture, tiles)
