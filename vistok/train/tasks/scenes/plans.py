"""Where a scene's objects are on a grid of cells, and their silhouettes within the cells."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vistok.data.scenes import NUM_CLASSES, Scenes, render_masks

SEEN = 0.1  # share of a cell that an object must cover to be seen in it
SILHOUETTE = 4  # parts along a cell's side in which the objects' cover is told


class Plan(NamedTuple):
    """Where the objects of B scenes are on a grid of n cells in raster order.

    Attributes:
        cells: kind of object in each cell, NUM_CLASSES where there is none, [B, n].
        kinds: kind of each object, [B, 4].
        begins: first cell of each object, -1 where there is no object, [B, 4].
    """

    cells: Tensor
    kinds: Tensor
    begins: Tensor


def plan(scenes: Scenes, grid: int, side: int = 64, order: Tensor | None = None) -> Plan:
    """Returns the plans of scenes on ``grid`` x ``grid`` cells, int16, in another order of cells if one is given."""
    cover = F.avg_pool2d(render_masks(scenes, side), side // grid).flatten(2)  # [B, 4, n]
    if order is not None:
        cover = cover[:, :, order]
    kinds = scenes.kind
    most, owner = cover.max(1)
    cells = torch.where(most > SEEN, kinds.gather(1, owner), NUM_CLASSES)
    begins = torch.where(scenes.present, (cover > SEEN).long().argmax(2), -1)
    return Plan(*(x.to(torch.int16) for x in (cells, kinds, begins)))


def silhouettes(scenes: Scenes, grid: int, side: int = 64) -> Tensor:
    """Returns how much of each part of a cell objects cover, 0 to 255, uint8 [B, grid^2, SILHOUETTE^2]."""
    cover = F.adaptive_avg_pool2d(render_masks(scenes, side).amax(1), grid * SILHOUETTE)
    parts = (cover * 255).round().byte()
    return rearrange(parts, "b (h p) (w q) -> b (h w) (p q)", p=SILHOUETTE, q=SILHOUETTE)


def both_silhouettes(scenes: Scenes, grid: int, side: int = 64) -> Tensor:
    """Returns ``silhouettes`` of scenes and of their mirror images, uint8 [B, 2, grid^2, SILHOUETTE^2]."""
    upright = silhouettes(scenes, grid, side)
    cells = upright.view(-1, grid, grid, SILHOUETTE, SILHOUETTE)
    return torch.stack([upright, cells.flip(2, 4).reshape(upright.shape)], 1)


def both_cells(scenes: Scenes, grid: int, side: int = 64) -> Tensor:
    """Returns ``Plan.cells`` of scenes and of their mirror images, uint8 [B, 2, grid^2]."""
    upright = plan(scenes, grid, side).cells.byte()
    return torch.stack([upright, upright.unflatten(1, (grid, grid)).flip(2).flatten(1)], 1)


def silhouette_loss(logits: Tensor, told: Tensor) -> Tensor:
    """Returns the cross-entropy of readings [..., SILHOUETTE * SILHOUETTE] and silhouettes, in nats a part."""
    return F.binary_cross_entropy_with_logits(logits.float(), told.float() / 255)
