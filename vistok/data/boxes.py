"""Boxes as text, as Pink (arXiv 2310.00582) writes and reads them, and how far two boxes agree.

A box is (x0, y0, x1, y1) in pixels; as text it is ``[0.156,0.104,0.469,0.521]``: fractions of the picture's width and
height. The published evaluation counts pixels as if boxes were inclusive, in part; ``legacy=True`` does the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from vistok.errors import VistokError

DECIMALS = 3
AGREES = 0.5  # overlap from which on a box is found


def box_text(box: Sequence[float], wh: Sequence[float], decimals: int = DECIMALS) -> str:
    """Returns a box in words.

    Args:
        box: (x0, y0, x1, y1) in pixels.
        wh: width and height of the picture.
        decimals: of each number; three as published.

    Raises:
        VistokError: the picture has no extent, or the box reaches beyond it or is empty.
    """
    check_box(box, wh)
    scale = (1 / wh[0], 1 / wh[1]) * 2
    return "[" + ",".join(f"{value * s:.{decimals}f}" for value, s in zip(box, scale, strict=True)) + "]"


def check_box(box: Sequence[float], wh: Sequence[float]) -> None:
    """Raises VistokError unless a box in pixels has an extent and lies within a picture of that width and height."""
    if len(box) != 4:
        raise VistokError(f"a box is x0,y0,x1,y1 in pixels, got {len(box)} numbers.")
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= wh[0] and 0 <= y0 < y1 <= wh[1]):
        shown = ",".join(f"{value:g}" for value in box)
        raise VistokError(
            f"the box {shown} is no part of a picture of {wh[0]:g}x{wh[1]:g} pixels: "
            "give x0,y0,x1,y1 with x0 < x1 and y0 < y1 inside it."
        )


@cache
def _numbers(decimals: int) -> re.Pattern[str]:
    return re.compile(rf"[0-9]\.[0-9]{{{decimals}}}")


def parse_box(text: str, wh: Sequence[float], decimals: int = DECIMALS) -> tuple[float, ...] | None:
    """Returns the box that an answer tells, in pixels; None where it does not tell exactly four numbers of that form.

    The numbers are returned as they stand: they may be out of order, or beyond the picture.
    """
    found = [float(number) for number in _numbers(decimals).findall(text)]
    if len(found) != 4:
        return None
    return tuple(value * side for value, side in zip(found, (*wh, *wh), strict=True))


def overlap(a: Tensor, b: Tensor, legacy: bool = False) -> Tensor:
    """Returns the intersection over union of boxes [..., 4] pairwise, in [0, 1]; 0 where either has no extent.

    Args:
        legacy: as the published evaluation: the intersection ends one pixel earlier and counts one more, and is none
            unless longer than a pixel each way.
    """
    a, b = torch.broadcast_tensors(a.double(), b.double())
    low = torch.maximum(a[..., :2], b[..., :2])
    high = torch.minimum(a[..., 2:], b[..., 2:])
    extent = (high - low).clamp(min=0)
    if legacy:
        extent = extent.masked_fill(high - 1 <= low, 0)
    inter = extent.prod(-1)
    area = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    return inter / (area - inter).clamp(min=1e-12)


def self_consistent(
    boxes: Tensor, grounded: Tensor, told: Tensor, threshold: float = AGREES, legacy: bool = False
) -> Tensor:
    """Returns which expressions that a model gave to boxes lead it back to them.

    Args:
        boxes: annotated boxes [R, 4] in pixels.
        grounded: the boxes that the model finds for its own expressions [R, 4].
        told: which of these answers hold a box at all, bool [R].
        threshold: least overlap; inclusive here, where the evaluation is strict.
        legacy: see ``overlap``.

    Returns:
        bool [R].
    """
    return told & (overlap(boxes, grounded, legacy) >= threshold)
