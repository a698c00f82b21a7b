"""LFM2-VL: tiles of any shape through SigLIP 2, padded to the longest, blocks of 2x2 patches as tokens."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import Tensor, nn

from vistok.models.families.attention import LayerAttention
from vistok.models.families.capture import Seen
from vistok.models.families.encoded import EncodedFamily, Tile, block_pool


class Lfm2Vl(EncodedFamily):
    """The family ``lfm2_vl``; tiles are pictures of their own.

    Some decoder layers convolve neighbouring columns, so thinning changes what stands beside a token in these.
    """

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        shapes = inputs["spatial_shapes"]
        output = base.get_image_features(
            inputs["pixel_values"], shapes, inputs["pixel_attention_mask"], return_dict=True
        )
        factor = base.config.downsample_factor
        grids = [(h // factor, w // factor) for h, w in shapes.tolist()]
        return [Tile(tokens, grid) for tokens, grid in zip(output.pooler_output, grids, strict=True)]

    def attention(
        self, base: nn.Module, seen: Seen, tile: int, tiles: list[Tile], inputs: dict[str, Any]
    ) -> LayerAttention:
        height, width = inputs["spatial_shapes"][tile].tolist()
        q, k = (self._whole_blocks(base, x, height, width) for x in self.row(seen, tile))
        return LayerAttention(q, k, seen.module.num_heads, False, block_pool(q.shape[1], tiles[tile].grid))

    @staticmethod
    def _whole_blocks(base: nn.Module, x: Tensor, height: int, width: int) -> Tensor:
        """Patches [1, P, C] without padding and without an odd last row or column, which no token stands for."""
        factor = base.config.downsample_factor
        x = x[:, : height * width].unflatten(1, (height, width))
        return x[:, : height // factor * factor, : width // factor * factor].flatten(1, 2)

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        if tiles == 1:
            return 1, 1
        layout = images(images=[[picture]], return_row_col_info=True)
        return int(layout["image_rows"][0]), int(layout["image_cols"][0])
