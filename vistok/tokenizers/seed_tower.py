"""The vision networks that SEED reads pictures with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.tokenizers.blocks import Block
from vistok.tokenizers.seed_config import SeedConfig

TOWERS = ("eva", "scenes", "none")
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class EvaTower(nn.Module):
    """EVA-CLIP (Fang et al., arXiv 2211.07636) without its last block and norm, as BLIP-2 uses it.

    Pictures [B, 3, H, W] in [-1, 1] to features [B, 1 + (H / patch)^2, W], the class token first.
    """

    def __init__(self, config: SeedConfig):
        super().__init__()
        width, patch = config.tower_width, config.tower_patch
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, patch, stride=patch)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + (config.image_size // patch) ** 2, width))
        self.blocks = nn.ModuleList(
            Block(width, config.tower_heads, config.tower_mlp, key_bias=False) for _ in range(config.tower_layers)
        )

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (images.new_tensor(each)[:, None, None] for each in (CLIP_MEAN, CLIP_STD))
        x = self.patch_embed.proj(((images + 1) / 2 - mean) / std).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return x


class ScenesTower(nn.Module):
    """The trunk of the embedded ``scenes-features``: pictures to features [B, cells, W], with their places added."""

    def __init__(self, config: SeedConfig):
        super().__init__()
        from vistok.models.vision.inception import fold_batch_norms
        from vistok.models.vision.scenes import CELLS, CHANNELS, SIDE, SceneFeatures

        if (config.image_size, config.tower_width) != (SIDE, CHANNELS):
            raise VistokError(
                f"the tower 'scenes' sees {SIDE} pixels and is {CHANNELS} wide, got image_size {config.image_size} and "
                f"tower_width {config.tower_width}."
            )
        self.trunk = fold_batch_norms(SceneFeatures().eval()).trunk
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, CELLS**2, CHANNELS))

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images).flatten(2).transpose(1, 2) + self.pos_embed


def build_tower(config: SeedConfig) -> nn.Module | None:
    """Returns the untrained vision network of a shape; None where features are handed in.

    Raises:
        VistokError: unknown tower.
    """
    if config.tower not in TOWERS:
        raise unknown_name("tower of SEED", config.tower, list(TOWERS))
    if config.tower == "none":
        return None
    return EvaTower(config) if config.tower == "eva" else ScenesTower(config)
