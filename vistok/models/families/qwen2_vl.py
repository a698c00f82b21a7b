"""Qwen2-VL and 2.5-VL: pictures of any size, with positions of three axes, seen after the tower's 2x2 merging."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from vistok.models.families.attention import LayerAttention
from vistok.models.families.capture import Seen
from vistok.models.families.encoded import EncodedFamily, Tile, group_mean
from vistok.models.families.family import Ask, Picture


class MergedPatches(EncodedFamily):
    """Base of families whose tower merges the patches of a token, as Qwen2-VL's, with positions of three axes."""

    position_axes = 3

    def position_offset(self, model: nn.Module) -> Tensor | int:
        delta = model.base_model.rope_deltas
        return 0 if delta is None else delta

    def modules(self, base: nn.Module) -> list[nn.Module]:
        return [block.attn for block in base.visual.blocks]

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        grids = inputs["image_grid_thw"]
        output = base.get_image_features(inputs["pixel_values"], grids, return_dict=True)
        return [Tile(tokens, grid) for tokens, grid in zip(output.pooler_output, _grids(base, grids), strict=True)]

    def attention(
        self, base: nn.Module, seen: Seen, tile: int, tiles: list[Tile], inputs: dict[str, Any]
    ) -> LayerAttention:
        q, k = self.in_order(base, seen, inputs)
        block = base.visual.spatial_merge_size**2
        lengths = [len(t.tokens) * block for t in tiles]
        q, k = (x.split(lengths, 1)[tile] for x in (q, k))
        return LayerAttention(q, k, seen.module.num_heads, False, partial(group_mean, block))

    def in_order(self, base: nn.Module, seen: Seen, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Returns queries and keys of all pictures, with the patches of a token together and tokens in raster order."""
        return seen.queries_and_keys()


class Qwen2VL(MergedPatches):
    """The family ``qwen2_vl``."""

    def videos(self, model: nn.Module, inputs: dict[str, Any], ask: Ask) -> Iterator[list[Picture]]:
        """Yields the frames of videos: to the tower each frame (two of the film) is a picture."""
        grids = inputs["video_grid_thw"]
        frames = grids.repeat_interleave(grids[:, 0], 0)
        frames[:, 0] = 1
        pixels = {"pixel_values": inputs["pixel_values_videos"], "image_grid_thw": frames}
        pictures = self.pictures(model, pixels, ask)
        for count in grids[:, 0].tolist():
            yield list(islice(pictures, count))


class Qwen25VL(Qwen2VL):
    """The family ``qwen2_5_vl``: a few layers of its tower look at whole pictures, and say what counts in them."""

    def layer(self, base: nn.Module, layer: int) -> int:
        full = sorted(base.visual.fullatt_block_indexes)
        return max((i for i in full if i <= layer), default=full[0])

    def in_order(self, base: nn.Module, seen: Seen, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

        tower = base.visual
        order, _ = get_vision_window_index(
            inputs["image_grid_thw"],
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        block = tower.spatial_merge_size**2
        back = torch.argsort(order)
        return tuple(x.unflatten(1, (-1, block))[:, back].flatten(1, 2) for x in seen.queries_and_keys())


class Qwen3VL(Qwen2VL):
    """The family ``qwen3_vl``: further levels of the tower are added to the tokens after the decoder's first layers."""

    def earliest_drop(self, model: nn.Module) -> int:
        return len(model.base_model.visual.deepstack_visual_indexes)

    def tiles(self, base: nn.Module, inputs: dict[str, Any]) -> list[Tile]:
        grids = inputs["image_grid_thw"]
        output = base.get_image_features(inputs["pixel_values"], grids, return_dict=True)
        levels = len(output.deepstack_features)
        maps = zip(output.pooler_output, *output.deepstack_features, strict=True)
        return [
            Tile(torch.cat(levels_of, -1), grid, levels)
            for levels_of, grid in zip(maps, _grids(base, grids), strict=True)
        ]

    def encoded(self, features: list[Tensor], levels: list[list[Tensor]]) -> Any:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

        by_level = [list(level) for level in zip(*levels, strict=True)]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=features, deepstack_features=by_level)


def _grids(base: nn.Module, grids: Tensor) -> list[tuple[int, int]]:
    """Rows and columns of tokens of each picture."""
    merge = base.visual.spatial_merge_size
    return [(t * h // merge, w // merge) for t, h, w in grids.tolist()]
