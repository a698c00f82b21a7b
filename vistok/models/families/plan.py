"""Where each visual token of a prompt comes from: the packing of LLaVA-1.5 and LLaVA-NeXT.

A plan lists, for every placeholder of a picture, the token that fills it, so that unpadding and row ends are worked out
in one place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vistok.models.families.tokens import Canvas

NEWLINE = -1  # in a plan


def unpadded(canvas: tuple[int, int], size: tuple[int, int], digits: int | None = 7) -> tuple[int, int, int, int]:
    """Returns the part of a canvas that a centred picture fills.

    Args:
        canvas: height and width.
        size: height and width of the original picture.
        digits: to round to before truncation, as transformers does; None truncates, as the original LLaVA.

    Returns:
        top, bottom, left, right.
    """
    (height, width), (original_height, original_width) = canvas, size

    def cut(full: int, length: float) -> tuple[int, int]:
        padding = (full - int(length if digits is None else round(length, digits))) // 2
        return padding, full - padding

    if original_width / original_height > width / height:
        return (*cut(height, original_height * (width / original_width)), 0, width)
    return (0, height, *cut(width, original_width * (height / original_height)))


class Plan(NamedTuple):
    """The placeholders of one picture.

    Attributes:
        tokens: what fills each: token n of view v as v * N + n, or ``NEWLINE``, int64 [T] on the CPU.
        row: row of the crops that each belongs to, -1 outside of them, int64 [T].
    """

    tokens: Tensor
    row: Tensor

    def valid(self, views: int, tokens: int) -> Tensor:
        """Returns tokens that the plan uses, bool [views, tokens]."""
        used = torch.zeros(views * tokens, dtype=torch.bool)
        used[self.tokens[self.tokens != NEWLINE]] = True
        return used.view(views, tokens)


def single_view_plan(tokens: int, newline: bool = False) -> Plan:
    """Returns the plan of a picture of one view: its tokens, and a row end if the model adds one."""
    plan = torch.arange(tokens + newline)
    plan[tokens:] = NEWLINE
    return Plan(plan, torch.zeros_like(plan))


def rows_plan(grid: tuple[int, int]) -> Plan:
    """Returns the plan of one view whose rows each have a row end."""
    height, width = grid
    tokens = torch.cat([torch.arange(height * width).view(height, width), torch.full((height, 1), NEWLINE)], 1)
    return Plan(tokens.flatten(), torch.arange(height)[:, None].expand_as(tokens).flatten())


def crops_plan(grid: tuple[int, int], canvas: Canvas) -> Plan:
    """Returns the plan of a thumbnail and then the unpadded canvas of crops, row by row, each with a row end.

    Args:
        grid: rows and columns of patches of a view.
        canvas: layout of the crops.
    """
    height, width = grid
    ids = torch.arange(canvas.rows * canvas.cols * height * width) + height * width
    ids = ids.view(canvas.rows, canvas.cols, height, width).transpose(1, 2)
    ids = ids.reshape(canvas.rows * height, canvas.cols * width)[canvas.top : canvas.bottom, canvas.left : canvas.right]
    ids = torch.cat([ids, torch.full((len(ids), 1), NEWLINE)], 1)
    rows = torch.arange(len(ids))[:, None].expand_as(ids)
    thumbnail = torch.arange(height * width)
    return Plan(torch.cat([thumbnail, ids.flatten()]), torch.cat([torch.full_like(thumbnail, -1), rows.flatten()]))
