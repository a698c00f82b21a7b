"""Scenes to pixels: anti-aliased shapes by signed distance, backgrounds by closed formulas, all scenes of a batch at
once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from vistok.data.scenes.world import BACKGROUNDS, NOISE_CELLS, PALETTE, SHAPES, Scenes

# Where each shape of unit half-extent begins and ends: x0, y0, x1, y1.
EXTENTS = {
    "circle": (-1, -1, 1, 1),
    "square": (-0.88, -0.88, 0.88, 0.88),
    "triangle": (-0.95, -1, 0.95, 0.85),
    "cross": (-1, -1, 1, 1),
    "ring": (-1, -1, 1, 1),
    "diamond": (-1.04, -1.04, 1.04, 1.04),
}


def shape_distance(shape: str, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Returns the signed distance to a shape of unit half-extent, negative inside.

    Args:
        shape: one of SHAPES.
        u, v: coordinates relative to the centre, in units of the radius, v downwards.
    """
    a, b = u.abs(), v.abs()
    if shape == "circle":
        return torch.hypot(u, v) - 1
    if shape == "square":
        return torch.maximum(a, b) - 0.88
    if shape == "triangle":
        side = (1.85 * a - 0.95 * (v + 1)) / math.hypot(1.85, 0.95)
        return torch.maximum(side, v - 0.85)
    if shape == "cross":
        return torch.minimum(torch.maximum(a - 1, b - 0.36), torch.maximum(a - 0.36, b - 1))
    if shape == "ring":
        return (torch.hypot(u, v) - 0.74).abs() - 0.26
    return (a + b - 1.04) / math.sqrt(2)  # diamond


def render_masks(scenes: Scenes, side: int) -> torch.Tensor:
    """Returns the coverage of every pixel by every object, in [0, 1].

    Args:
        scenes: B scenes.
        side: pixels along a side.

    Shape:
        [B, 4, side, side], zero for absent objects.
    """
    grid = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    coverage = torch.zeros(len(scenes), scenes.group.shape[1], side, side)
    for i, shape in enumerate(SHAPES):
        b, o = torch.where(scenes.present & (scenes.shape == i))
        if len(b) == 0:
            continue
        radius = scenes.radius[b, o].float()[:, None, None]
        x, y = scenes.centre[b, o].float().unbind(-1)
        u = (grid[None, None, :] - x[:, None, None]) / radius
        v = (grid[None, :, None] - y[:, None, None]) / radius
        distance = shape_distance(shape, *torch.broadcast_tensors(u, v)) * radius * side  # in pixels
        coverage[b, o] = (0.5 - distance).clamp(0, 1)
    return coverage


def render_background(scenes: Scenes, side: int) -> torch.Tensor:
    """Renders backgrounds alone, RGB in [0, 1], [B, 3, side, side]."""
    grid = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    texture = scenes.texture.float()
    angle = (texture[:, 0] * 4).floor() * (math.pi / 4)  # four directions
    period = (0.1875 + 0.0625 * (texture[:, 1] * 4).floor())[:, None, None]  # 3/16 to 6/16 of the side
    phase_x, phase_y = texture[:, 2, None, None], texture[:, 3, None, None]
    along = angle.cos()[:, None, None] * x + angle.sin()[:, None, None] * y
    low, high = along.amin((1, 2), keepdim=True), along.amax((1, 2), keepdim=True)
    stripes = (torch.floor(along / period + phase_x) % 2).float()
    checks = (torch.floor(x / period + phase_x) + torch.floor(y / period + phase_y)) % 2
    coarse = texture[:, 4:].view(-1, 1, NOISE_CELLS, NOISE_CELLS)
    cloud = F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)[:, 0]
    fields = torch.stack(
        [torch.zeros_like(cloud), (along - low) / (high - low), stripes, checks, cloud], 1
    )  # [B, 5, side, side], in the order of BACKGROUNDS
    assert fields.shape[1] == len(BACKGROUNDS)
    mix = fields[torch.arange(len(scenes)), scenes.background][:, None]
    first, second = scenes.tones[:, 0, :, None, None], scenes.tones[:, 1, :, None, None]
    return first + mix * (second - first)


def render(scenes: Scenes, side: int = 64) -> torch.Tensor:
    """Renders the scenes as pictures.

    Args:
        scenes: B scenes.
        side: pixels along a side; 64 and 128 are the sizes that the embedded models know.

    Shape:
        float32 [B, 3, side, side] in [-1, 1].
    """
    image = render_background(scenes, side)
    coverage = render_masks(scenes, side)
    for o in range(coverage.shape[1]):
        alpha = coverage[:, o, None]
        image = image + alpha * (PALETTE[scenes.colour[:, o]][:, :, None, None] - image)
    return image * 2 - 1


def boxes(scenes: Scenes, side: int) -> torch.Tensor:
    """Returns tight boxes (x0, y0, x1, y1) around the objects in pixels, float32 [B, 4, 4] (undefined where absent)."""
    extent = torch.tensor([EXTENTS[shape] for shape in SHAPES], dtype=torch.float64)[scenes.shape]  # [B, 4, 4]
    corners = scenes.centre.repeat(1, 1, 2) + extent * scenes.radius[..., None]
    return (corners * side).float()
