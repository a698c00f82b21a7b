"""Control tokens of Visual Perception Token (arXiv 2502.17425): how a model asks for a second look, and what is meant.

A region is a span of cells of an 8x8 grid, told by any number of ``<|x_i|>`` and ``<|y_j|>`` between its markers; it is
enlarged by a cell on each side. A re-encoding action asks for the features of another encoder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vistok.data.boxes import check_box
from vistok.errors import VistokError

GRID = 8
REGION_START, REGION_END = "<|region_token_start|>", "<|region_token_end|>"
ACTIONS = ("detection", "seg", "clip")  # DINOv2, SAM, and the model's own tower
REGION_TOKENS = (
    REGION_START,
    REGION_END,
    *(f"<|x_{i}|>" for i in range(GRID)),
    *(f"<|y_{i}|>" for i in range(GRID)),
)
_REGION = re.compile(re.escape(REGION_START) + r"(.*?)" + re.escape(REGION_END), re.DOTALL)


def action_tokens(action: str) -> tuple[str, str, str]:
    """Returns the three tokens of a re-encoding action: its start, the action, and its end."""
    return f"<|{action}_action_start|>", f"<|{action}_action|>", f"<|{action}_action_end|>"


def region_words(box: Sequence[float], wh: Sequence[float]) -> list[str]:
    """Returns the control tokens of a box in pixels: those of its first and of its last cell.

    Raises:
        VistokError: the box is empty, or no part of a picture of that width and height.
    """
    check_box(box, wh)
    cells = [min(GRID - 1, int(value * GRID / side)) for value, side in zip(box[:2], wh, strict=True)]
    last = [max(0, -int(-value * GRID // side) - 1) for value, side in zip(box[2:], wh, strict=True)]
    pairs = [[f"<|x_{x}|>", f"<|y_{y}|>"] for x, y in (cells, [min(GRID - 1, v) for v in last])]
    return [REGION_START, *pairs[0], *pairs[1], REGION_END]


def parse_regions(text: str, wh: Sequence[float], most: int | None = None) -> list[tuple[float, float, float, float]]:
    """Returns the boxes in pixels that the regions of an answer mean, enlarged by a cell on each side.

    Args:
        text: the answer, with its control tokens.
        wh: width and height of the picture.
        most: how many regions are allowed; any number if None.

    Raises:
        VistokError: there are more regions than allowed, or one tells no column or no row of the grid.
    """
    found = _REGION.findall(text)
    if most is not None and len(found) > most:
        raise VistokError(
            f"the answer asks for {len(found)} regions, and {most} are allowed: allow more, or ask again."
        )
    out = []
    for inner in found:
        columns, rows = ([int(number) for number in re.findall(rf"<\|{axis}_(\d+)\|>", inner)] for axis in "xy")
        if not columns or not rows or max(columns + rows) >= GRID:
            raise VistokError(
                f"a region of the answer is '{inner.strip()}', and needs columns and rows of 0 to {GRID - 1}."
            )
        spans = []
        for cells, side in ((columns, wh[0]), (rows, wh[1])):
            first, last = max(0, min(cells) - 1), min(GRID - 1, max(cells) + 1)
            spans.append((first * side / GRID, (last + 1) * side / GRID))
        out.append((spans[0][0], spans[1][0], spans[0][1], spans[1][1]))
    return out


def squared(box: Sequence[float], wh: Sequence[float]) -> tuple[int, int, int, int]:
    """Returns the smallest square of whole pixels around a box, moved into the picture where it reaches beyond.

    Models that see squares would cut the ends of anything longer. In a picture narrower than the square, it is as
    wide as the picture.
    """
    extent = max(box[2] - box[0], box[3] - box[1])
    spans = []
    for low, high, side in ((box[0], box[2], wh[0]), (box[1], box[3], wh[1])):
        length = min(extent, side)
        first = min(max(0.0, (low + high - length) / 2), side - length)
        spans.append((round(first), round(first + length)))
    return spans[0][0], spans[1][0], spans[0][1], spans[1][1]
