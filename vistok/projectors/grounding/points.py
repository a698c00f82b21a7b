"""READ (arXiv 2412.17741): the similarity of a <SEG> token to the visual tokens, as points that prompt a mask decoder.

The last hidden state at <SEG> looks like those of the tokens of what it means, so the map of their products says
where it is; its peaks become positive points and its valleys negative ones. Visual tokens are taken to show the centre
square of the picture, as CLIP crops it. Where a map has no spread, every cell is neutral (the authors' code divides by
zero there).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError

CROP = 336  # side to which the full-resolution map is drawn before it is fitted to the picture
REACH = 6  # pixels around a point beyond which the refinement's weights vanish
POSITIVE, NEGATIVE, NEUTRAL = 1, 0, -1
OUTSIDE = -1.0  # similarity of cells that no visual token shows


class Points(NamedTuple):
    """Points in a picture: (x, y) in pixels, float32 [P, 2], and their labels int64 [P]: 1 positive, 0 negative, -1
    neutral; the most certain first within each kind, positive before negative before neutral."""

    xy: Tensor
    labels: Tensor


def similarity(image_hidden: Tensor, seg_hidden: Tensor) -> Tensor:
    """Returns products of the last hidden states of visual tokens [B, N, D] and of <SEG> [T, D], [B, N, T]."""
    return image_hidden @ seg_hidden.transpose(-1, -2)


def similarity_points(
    scores: Tensor,
    image_hw: tuple[int, int],
    num_points: int = 30,
    t_pos: float = 0.8,
    t_neg: float = 0.2,
    down_sample: int = 2,
) -> Points:
    """Returns points of one map.

    Args:
        scores: similarity of each visual token in raster order of a square grid, [N].
        image_hw: height and width of the picture in pixels.
        num_points: at most so many; 60 with ``t_pos`` 0.6 for the 13B model.
        t_pos, t_neg: a positive point's least and a negative one's greatest similarity, scaled to [0, 1].
        down_sample: the grid is smoothed to that fraction of its side.

    Raises:
        VistokError: the tokens form no square, or the picture or the number of points is empty.
    """
    side = _side(scores)
    if min(image_hw) < 1 or num_points < 1 or not 1 <= down_sample <= side:
        raise VistokError(
            f"points need a picture, at least one point and a smoothing of 1 to {side}; got a picture of "
            f"{image_hw[0]}x{image_hw[1]} pixels, {num_points} points and {down_sample}."
        )
    height, width = image_hw
    grid = scores.float().view(1, 1, side, side)
    small = _unit(F.interpolate(grid, size=(side // down_sample,) * 2, mode="bilinear")[0, 0])
    fitted = _fit(small, image_hw, OUTSIDE)
    rows, columns = fitted.shape
    flat = fitted.flatten()
    positive, negative, neutral = flat >= t_pos, (flat >= 0) & (flat <= t_neg), (flat > t_neg) & (flat < t_pos)
    if small.min() == small.max():
        positive, negative, neutral = torch.zeros_like(neutral), torch.zeros_like(neutral), flat >= 0
    order = torch.cat(
        [
            _ranked(flat, positive, descending=True),
            _ranked(flat, negative, descending=False),
            neutral.nonzero()[:, 0],
        ]
    )[:num_points]
    labels = torch.full_like(order, NEUTRAL)
    labels[positive[order]] = POSITIVE
    labels[negative[order]] = NEGATIVE
    x = ((order % columns + 0.5) * (width / columns)).clamp(max=width - 1).long()
    y = ((order // columns + 0.5) * (height / rows)).clamp(max=height - 1).long()
    return Points(_refine(full_map(scores, image_hw), x, y), labels)


def full_map(scores: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Returns similarity scaled to [0, 1] and drawn over the picture, zero where no visual token looks, [H, W].

    Args:
        scores: as in :func:`similarity_points`.
        image_hw: height and width of the picture in pixels.
    """
    side = _side(scores)
    grid = _unit(scores.float()).view(1, 1, side, side)
    drawn = F.interpolate(grid, size=(CROP, CROP), mode="bilinear")[0, 0]
    return F.interpolate(_fit(drawn, image_hw, 0.0)[None, None], size=image_hw, mode="bilinear")[0, 0]


def _side(scores: Tensor) -> int:
    side = round(scores.numel() ** 0.5)
    if scores.ndim != 1 or side * side != scores.numel() or side == 0:
        raise VistokError(f"points need the similarity of a square grid of visual tokens, got {list(scores.shape)}.")
    return side


def _unit(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)


def _fit(square: Tensor, image_hw: tuple[int, int], value: float) -> Tensor:
    """Pads a map of the centre square so that it covers a picture of that shape."""
    scale = square.shape[0] / min(image_hw)
    tall, wide = ((int(extent * scale) - square.shape[0]) // 2 for extent in image_hw)
    return F.pad(square, (wide, wide, tall, tall), value=value)


def _ranked(values: Tensor, among: Tensor, descending: bool) -> Tensor:
    index = among.nonzero()[:, 0]
    return index[values[index].argsort(descending=descending)]


def _refine(drawn: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Returns the mean place around each point under the softmax of the map and a Gaussian; differentiable in the map.

    The Gaussian is below 1e-15 beyond ``REACH`` pixels, so a window of that reach stands for the whole picture.
    """
    height, width = drawn.shape
    reach = torch.arange(-REACH, REACH + 1, device=drawn.device)
    across, down = x[:, None, None] + reach, y[:, None, None] + reach[:, None]  # [P, 1, W], [P, W, 1]
    inside = (across >= 0) & (across < width) & (down >= 0) & (down < height)
    near = drawn[down.clamp(0, height - 1), across.clamp(0, width - 1)] - (reach[:, None] ** 2 + reach**2)
    weights = near.masked_fill(~inside, -torch.inf).flatten(1).softmax(1).view_as(near)
    return torch.stack([(weights * across).sum((1, 2)), (weights * down).sum((1, 2))], 1)
