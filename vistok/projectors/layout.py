"""Where each visual token of a prompt comes from, and which of them stay: the packing of LLaVA-1.5 and LLaVA-NeXT.

A plan lists, for every placeholder of a picture, the token that fills it: patch n of view v as v * N + n, or a row
end of the crops. Thinning a picture is then a choice of placeholders, so the packing is written once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.vision import LEADING, TRAILING, Canvas, ImageTokens, Kept

NEWLINE = -1


class Packed(NamedTuple):
    """What the language model gets for a picture.

    Attributes:
        features: [n, D].
        offsets: placeholder of the picture that each token takes the place of, 0..T-1, ascending, float64 [n] on the
            CPU; half a place before the first or after the last where it stands for none.
        index: token that each is, as in a plan; ``LEADING`` or ``TRAILING`` for none, ``NEWLINE`` - 2 for a row end.
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


def single_view_plan(tokens: int, newline: bool) -> Tensor:
    """Plan of a picture of one view: its tokens, and a row end if the model adds one, int64 [T]."""
    plan = torch.arange(tokens)
    return torch.cat([plan, torch.tensor([NEWLINE])]) if newline else plan


def crops_plan(grid: tuple[int, int], canvas: Canvas) -> Tensor:
    """Plan of a thumbnail and crops: the thumbnail, then the unpadded canvas row by row, each with a row end.

    Args:
        grid: rows and columns of patches of a view.
        canvas: layout of the crops.

    Returns:
        int64 [T].
    """
    height, width = grid
    ids = torch.arange(canvas.rows * canvas.cols * height * width) + height * width
    ids = ids.view(canvas.rows, canvas.cols, height, width).transpose(1, 2)
    ids = ids.reshape(canvas.rows * height, canvas.cols * width)[canvas.top : canvas.bottom, canvas.left : canvas.right]
    rows = torch.cat([ids, torch.full((len(ids), 1), NEWLINE)], 1)
    return torch.cat([torch.arange(height * width), rows.flatten()])


def valid_tokens(plan: Tensor, views: int, tokens: int) -> Tensor:
    """Tokens that a plan uses, bool [V, N]."""
    valid = torch.zeros(views * tokens, dtype=torch.bool)
    valid[plan[plan != NEWLINE]] = True
    return valid.view(views, tokens)


def _kept_newlines(plan: Tensor, kept: Tensor, policy: str) -> Tensor:
    """Which row ends stay, bool [T]: those that follow a kept token of their row, all, or none."""
    ends = plan == NEWLINE
    if policy == "none":
        return torch.zeros_like(ends)
    if policy == "all":
        return ends
    row = ends.cumsum(0) - ends.long()  # tokens and the end of their row share a number
    if ends.any():
        # The thumbnail comes before the first row without an end of its own; it must not hold that row's end.
        first = int(ends.nonzero()[1] - ends.nonzero()[0]) if int(ends.sum()) > 1 else int(ends.nonzero()[0]) + 1
        kept = kept.clone()
        kept[: int(ends.nonzero()[0]) + 1 - first] = False
    survivors = torch.zeros(int(row[-1]) + 2, dtype=torch.bool)
    survivors[row[kept]] = True
    return ends & survivors[row]


def pack(image: ImageTokens, plan: Tensor, kept: list[Kept] | Tensor, newlines: str) -> Packed:
    """Project the kept tokens and put them in the order of the plan.

    Args:
        image: the picture.
        plan: its plan, [T], on the CPU.
        kept: of each view; or finished features [n, D], which are spread over the plan.
        newlines: policy of row ends.

    Raises:
        VistokError: a compressor kept nothing.
    """
    if isinstance(kept, Tensor):
        spread = torch.linspace(0, len(plan) - 1, len(kept), dtype=torch.float64)
        return Packed(kept, spread, torch.full((len(kept),), TRAILING))
    if sum(len(view.index) for view in kept) == 0:
        raise VistokError("a compressor must keep at least one token of every picture.")
    width = image.hidden.shape[1]
    index = torch.cat([torch.where(view.index >= 0, view.index + v * width, view.index) for v, view in enumerate(kept)])
    index = index.cpu()
    place = torch.full((image.hidden.shape[0] * width,), -1, dtype=torch.int64)
    place[plan[plan != NEWLINE]] = (plan != NEWLINE).nonzero().squeeze(1)
    offsets = torch.where(index >= 0, place[index.clamp(min=0)], index).double()
    if bool((offsets[index >= 0] < 0).any()):
        raise VistokError("a compressor kept a token that only shows padding: choose among image.valid.")
    offsets[index == LEADING] = -0.5
    offsets[index == TRAILING] = len(plan) - 0.5
    on_plan = torch.zeros(len(plan), dtype=torch.bool)
    on_plan[offsets[index >= 0].long()] = True
    ends = _kept_newlines(plan, on_plan, newlines).nonzero().squeeze(1)
    offsets = torch.cat([offsets, ends.double()])
    index = torch.cat([index, torch.full_like(ends, NEWLINE - 2)])
    order = offsets.argsort(stable=True)
    features = _features(image, kept)
    if len(ends):
        features = torch.cat([features, image.newline.to(features).expand(len(ends), -1)])
    return Packed(features[order.to(features.device)], offsets[order], index[order])


def _features(image: ImageTokens, kept: list[Kept]) -> Tensor:
    """Projected tokens in the order of ``kept``; what was projected for the choice is not projected again."""
    if all(view.tokens is None for view in kept) and image._features is not None:
        return torch.cat([row[view.index] for row, view in zip(image._features, kept, strict=True)])
    tokens = [
        row[view.index] if view.tokens is None else view.tokens for row, view in zip(image.hidden, kept, strict=True)
    ]
    return image.project(torch.cat(tokens)[None])[0]
