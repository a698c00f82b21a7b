"""Deep supervision for generators of scenes: what is being painted, and what is still to come.

Codes say little about a caption: most of their cross-entropy is texture. Two linear maps therefore read from a middle
layer, at every token, which kind of object the token shows and how many objects of each kind begin at it or later.
Both are known to whoever has read the caption and seen the picture so far. They serve training alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import NUM_CLASSES, Scenes, render_masks
from vistok.data.scenes.world import MAX_OBJECTS

SEEN = 0.1  # share of a cell that an object must cover to be seen in it


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


def plan(scenes: Scenes, grid: int, side: int = 64) -> Plan:
    """The plans of scenes on a grid of ``grid`` x ``grid`` cells, int16."""
    cover = F.avg_pool2d(render_masks(scenes, side), side // grid).flatten(2)  # [B, 4, n]
    kinds = scenes.kind
    most, owner = cover.max(1)
    cells = torch.where(most > SEEN, kinds.gather(1, owner), NUM_CLASSES)
    begins = torch.where(scenes.present, (cover > SEEN).long().argmax(2), -1)
    return Plan(*(x.to(torch.int16) for x in (cells, kinds, begins)))


class SceneReader(nn.Module):
    """Two linear maps from hidden states to a scene's plan, and their cross-entropies.

    Args:
        dim: width of the states.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.now = nn.Linear(dim, NUM_CLASSES + 1)
        self.left = nn.Linear(dim, NUM_CLASSES * MAX_OBJECTS)
        nn.init.constant_(self.left.bias, -4.0)  # most kinds are not there

    def forward(self, states: Tensor, cells: Tensor, kinds: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Nats a token of the cell's kind, and of the number of objects of each kind that are left.

        Shape:
            states: [B, n, dim]; entry k is what token k is predicted from.
            cells, kinds, begins: see Plan.
        """
        now = F.cross_entropy(self.now(states).flatten(0, 1).float(), cells.flatten().long())
        steps = torch.arange(states.shape[1], device=states.device)
        coming = (begins[:, None] >= steps[:, None]).float()  # [B, n, 4]
        counts = coming @ F.one_hot(kinds.long(), NUM_CLASSES).float()  # [B, n, NUM_CLASSES]
        more = counts[..., None] > torch.arange(MAX_OBJECTS, device=states.device)  # 1, 2, 3 or 4 at least
        logits = self.left(states).unflatten(-1, (NUM_CLASSES, MAX_OBJECTS)).float()
        left = F.binary_cross_entropy_with_logits(logits, more.float(), reduction="none").sum((2, 3)).mean()
        return now, left
