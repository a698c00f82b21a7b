"""Mistral 3 with a Pixtral tower: pictures of any size in one sequence, 2x2 patches a token, row breaks as text."""

from __future__ import annotations

from typing import Any

from torch import nn

from vistok.models.families.attention import LayerAttention
from vistok.models.families.capture import Seen
from vistok.models.families.encoded import EncodedFamily, Tile, block_pool


class Mistral3(EncodedFamily):
    """The family ``mistral3``."""

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        layer = inputs.get("vision_feature_layer")
        layer = base.config.vision_feature_layer if layer is None else layer
        sizes = inputs["image_sizes"]
        output = base.get_image_features(
            inputs["pixel_values"], sizes, vision_feature_layer=layer, output_hidden_states=True, return_dict=True
        )
        side = base.vision_tower.patch_size * base.config.spatial_merge_size
        grids = [(h // side, w // side) for h, w in sizes.tolist()]
        return [Tile(tokens, grid) for tokens, grid in zip(output.pooler_output, grids, strict=True)]

    def attention(
        self, base: nn.Module, seen: Seen, tile: int, tiles: list[Tile], inputs: dict[str, Any]
    ) -> LayerAttention:
        patch = base.vision_tower.patch_size
        lengths = [(h // patch) * (w // patch) for h, w in inputs["image_sizes"].tolist()]
        q, k = (x.split(lengths, 1)[tile] for x in seen.queries_and_keys())
        return LayerAttention(q, k, seen.module.num_heads, False, block_pool(lengths[tile], tiles[tile].grid))
