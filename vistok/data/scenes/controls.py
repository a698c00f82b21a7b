"""Control pictures of scenes, exact from what a scene is: outlines of its objects, and which of them is where."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from vistok.data.scenes.render import render_masks
from vistok.data.scenes.world import SHAPES, Scenes

# Colours that stand for shapes, in the order of SHAPES; black is the background.
SHAPE_TONES = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], dtype=torch.float32)


def shape_map(scenes: Scenes, side: int) -> torch.Tensor:
    """Which shape every pixel belongs to, int64 [B, side, side], in the order of SHAPES; -1 is the background."""
    inside = render_masks(scenes, side) > 0.5  # [B, 4, side, side]
    shapes = torch.full((len(scenes), side, side), -1)
    for slot in range(inside.shape[1]):  # later objects lie on top, as they are rendered
        shapes = torch.where(inside[:, slot], scenes.shape[:, slot, None, None], shapes)
    return shapes


def render_segmentation(scenes: Scenes, side: int) -> torch.Tensor:
    """Scenes as maps of their shapes, each in the tone that stands for it, [B, 3, side, side] in [-1, 1]."""
    assert len(SHAPE_TONES) == len(SHAPES)
    tones = torch.cat([SHAPE_TONES, torch.zeros(1, 3)])[shape_map(scenes, side)]  # -1 is the last
    return tones.movedim(-1, 1) * 2 - 1


def render_outlines(scenes: Scenes, side: int) -> torch.Tensor:
    """White outlines of the objects on black, one pixel wide and inside them, [B, 3, side, side] in [-1, 1]."""
    outlines = inner_edges(render_masks(scenes, side) > 0.5).amax(1, keepdim=True)
    return outlines.float().expand(-1, 3, -1, -1) * 2 - 1


def inner_edges(regions: torch.Tensor) -> torch.Tensor:
    """Pixels of regions, bool [B, K, H, W], of which one of the eight neighbours is outside, bool [B, K, H, W]."""
    inside = regions.float()
    outside = F.max_pool2d(1 - F.pad(inside, (1, 1, 1, 1)), 3, stride=1)  # a neighbour, or the pixel itself, is outside
    return inside * outside > 0


RENDERERS = {"canny": render_outlines, "seg": render_segmentation}  # by the names that ControlAR gives to kinds
