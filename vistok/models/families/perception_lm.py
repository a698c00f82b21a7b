"""Perception LM: square tiles through a Perception Encoder of timm, with a CLS token, averaged in blocks of patches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vistok.models.families.attention import LayerAttention
from vistok.models.families.capture import Seen
from vistok.models.families.encoded import SquareTiles, Tile
from vistok.models.families.family import square


class PerceptionLM(SquareTiles):
    """The family ``perception_lm``; tiles are pictures of their own."""

    whole_first = True

    def modules(self, base: nn.Module) -> list[nn.Module]:
        return [block.attn for block in base.vision_tower.timm_model.blocks]

    def attention(
        self, base: nn.Module, seen: Seen, tile: int, tiles: list[Tile], inputs: dict[str, Any]
    ) -> LayerAttention:
        has_cls = base.config.vision_use_cls_token
        q, k = _queries_and_keys(seen, tile)
        pool = partial(_pooled, tiles[tile].grid)
        return LayerAttention(q[:, :1] if has_cls else q, k, seen.module.num_heads, has_cls, pool)

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        if tiles == 1:
            return 1, 1
        blank = torch.zeros(3, picture.height, picture.width)
        _, (cols, rows) = images.resize(blank, images.tile_size, images.max_num_tiles, images.resample)
        return rows, cols


def _queries_and_keys(seen: Seen, tile: int) -> tuple[Tensor, Tensor]:
    """Queries and keys of one tile [1, S, H*d], the patches rotated and the CLS token before them not."""
    from timm.layers import apply_rot_embed_cat

    attention = seen.module
    q, k, _ = attention.qkv(seen.states[tile : tile + 1]).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
    first = attention.num_prefix_tokens

    def met(x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        if seen.rotary is not None:
            patches = apply_rot_embed_cat(x[:, :, first:], seen.rotary, half=attention.rotate_half)
            x = torch.cat([x[:, :, :first], patches.to(x.dtype)], 2)
        return x.transpose(1, 2).flatten(2)

    return met(attention.q_norm(q)), met(attention.k_norm(k))


def _pooled(grid: tuple[int, int], scores: Tensor) -> Tensor:
    """Scores of patches [..., P] averaged as the projector averages them, [..., N]."""
    flat = scores.reshape(-1, 1, *square(scores.shape[-1]))
    return F.adaptive_avg_pool2d(flat, grid).flatten(1).unflatten(0, scores.shape[:-1])
