"""Where each visual token of a prompt comes from, and which of them stay: the packing of LLaVA-1.5 and LLaVA-NeXT.

A plan lists, for every placeholder of a picture, the token that fills it. Thinning a picture is then a choice of
placeholders, so that unpadding and row ends are worked out in one place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import LEADING, TRAILING, Canvas, ImageTokens, Kept

NEWLINE = -1  # in a plan
ROW_END = -3  # in what was packed


class Packed(NamedTuple):
    """What the language model gets for a picture.

    Attributes:
        features: [n, D].
        offsets: placeholder of the picture that each token takes the place of, 0..T-1, ascending, float64 [n] on the
            CPU; half a place before the first or after the last where it stands for none.
        index: token that each is, as in a plan; ``LEADING`` or ``TRAILING`` for none, ``ROW_END`` for a row end.
    """

    features: Tensor
    offsets: Tensor
    index: Tensor


def unpadded(canvas: tuple[int, int], size: tuple[int, int], digits: int | None = 7) -> tuple[int, int, int, int]:
    """The part of a canvas that a centred picture fills.

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
        """Tokens that the plan uses, bool [views, tokens]."""
        used = torch.zeros(views * tokens, dtype=torch.bool)
        used[self.tokens[self.tokens != NEWLINE]] = True
        return used.view(views, tokens)


def single_view_plan(tokens: int, newline: bool = False) -> Plan:
    """Plan of a picture of one view: its tokens, and a row end if the model adds one."""
    plan = torch.arange(tokens + newline)
    plan[tokens:] = NEWLINE
    return Plan(plan, torch.zeros_like(plan))


def crops_plan(grid: tuple[int, int], canvas: Canvas) -> Plan:
    """Plan of a thumbnail and crops: the thumbnail, then the unpadded canvas row by row, each with a row end.

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


def _kept_newlines(plan: Plan, kept: Tensor, policy: str) -> Tensor:
    """Placeholders of the row ends that stay: those of rows with a kept token, all, or none; int64 [n].

    A picture that is kept whole keeps its row ends whatever the policy.
    """
    ends = plan.tokens == NEWLINE
    if len(kept) == int((~ends).sum()):
        return ends.nonzero().squeeze(1)
    if policy == "none":
        ends = torch.zeros_like(ends)
    elif policy == "rows":
        survivors = torch.zeros(int(plan.row.max()) + 2, dtype=torch.bool)  # the last entry takes row -1
        survivors[plan.row[kept]] = True
        ends = ends & survivors[plan.row]
    return ends.nonzero().squeeze(1)


def pack(image: ImageTokens, plan: Plan, kept: list[Kept] | Tensor, newlines: str) -> Packed:
    """Project the kept tokens and put them in the order of the plan.

    Args:
        image: the picture.
        plan: its placeholders.
        kept: of each view; or finished features [n, D], which are spread over the plan.
        newlines: policy of row ends.

    Raises:
        VistokError: a compressor kept nothing.
    """
    if isinstance(kept, Tensor):
        spread = torch.linspace(0, len(plan.tokens) - 1, len(kept), dtype=torch.float64)
        return Packed(kept, spread, torch.full((len(kept),), TRAILING))
    if sum(len(view.index) for view in kept) == 0:
        raise VistokError("a compressor must keep at least one token of every picture.")
    width = image.hidden.shape[1]
    index = torch.cat([torch.where(view.index >= 0, view.index + v * width, view.index) for v, view in enumerate(kept)])
    index = index.cpu()
    place = torch.full((image.hidden.shape[0] * width,), -1, dtype=torch.int64)
    filled = (plan.tokens != NEWLINE).nonzero().squeeze(1)
    place[plan.tokens[filled]] = filled
    offsets = torch.where(index >= 0, place[index.clamp(min=0)], index).double()
    if bool((offsets[index >= 0] < 0).any()):
        raise VistokError("a compressor kept a token that only shows padding: choose among image.valid.")
    offsets[index == LEADING] = -0.5
    offsets[index == TRAILING] = len(plan.tokens) - 0.5
    ends = _kept_newlines(plan, offsets[index >= 0].long(), newlines)
    offsets = torch.cat([offsets, ends.double()])
    index = torch.cat([index, torch.full_like(ends, ROW_END)])
    order = offsets.argsort(stable=True)
    features = image.project_kept(kept)
    if len(ends):
        features = torch.cat([features, image.newline.to(features).expand(len(ends), -1)])
    return Packed(features[order.to(features.device)], offsets[order], index[order])
