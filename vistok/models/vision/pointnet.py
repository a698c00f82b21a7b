"""PointNet (Qi et al., 2017; arXiv 1612.00593) at small size: a feature of each segmented point cloud."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PointNet(nn.Module):
    """Maps every point alone, then takes the maximum over the points.

    Points are told relative to their object's centre, so the feature says what an object is and not where.

    Args:
        width: of the feature.
        hidden: width of the map of points.
    """

    def __init__(self, width: int = 128, hidden: int = 64) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(6, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.objects = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, clouds: Tensor, centres: Tensor) -> Tensor:
        """Features [B, N, width] of clouds x, y, z, red, green, blue [B, N, P, 6] around centres [B, N, 3]."""
        near = torch.cat([10 * (clouds[..., :3] - centres[:, :, None]), clouds[..., 3:]], -1)  # tenths of a room
        return self.objects(self.points(near).amax(2))
