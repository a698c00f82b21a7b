"""Shorten prompts to the visual tokens that were kept: new token ids, mask and whatever else has a column per token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError


class Shrunk(NamedTuple):
    """Shortened prompts.

    Attributes:
        columns: the column of the old prompt that each new one comes from, int64 [B, S']; for a token of no place of
            its own, the placeholder next to it; 0 at padding.
        mask: 1 at tokens, 0 at padding, int64 [B, S'].
    """

    columns: Tensor
    mask: Tensor

    def take(self, values: Tensor, fill: int) -> Tensor:
        """A tensor of the old prompt's columns [..., B, S] at the new ones, ``fill`` at padding: [..., B, S']."""
        taken = values.gather(-1, self.columns.expand(*values.shape[:-1], -1))
        return taken.masked_fill(self.mask == 0, fill)


def shrink_prompts(
    input_ids: Tensor, mask: Tensor, image_token: int, totals: list[int], offsets: list[Tensor], left: bool
) -> Shrunk:
    """Chooses the columns that stay of each prompt.

    Args:
        input_ids: [B, S], with ``totals[i]`` placeholders for each picture in turn, row after row.
        mask: 0 at padding, [B, S].
        image_token: id of the placeholder.
        totals: placeholders of each picture.
        offsets: of each picture, the places within its placeholders that stay, ascending (see ``Packed.offsets``).
        left: pad on the left; else on the right.

    Raises:
        VistokError: the prompts do not have the placeholders that the pictures need.
    """
    ids, present = input_ids.cpu(), mask.cpu().bool()
    is_image = (ids == image_token) & present
    if int(is_image.sum()) != sum(totals):
        raise VistokError(
            f"the prompts have {int(is_image.sum())} image placeholders, but their {len(totals)} images fill "
            f"{sum(totals)}: let the model's processor prepare text and images together."
        )
    rows, image = [], 0
    for row in range(len(ids)):
        places = is_image[row].nonzero().squeeze(1)
        text = (present[row] & ~is_image[row]).nonzero().squeeze(1)
        columns, order, start = [text], [text.double()], 0
        while start < len(places):
            mine = places[start : start + totals[image]]
            if len(mine) < totals[image]:
                raise VistokError("an image's placeholders are spread over two prompts: prepare each with its images.")
            nearest = offsets[image].round().long().clamp(0, len(mine) - 1)
            columns.append(mine[nearest])
            order.append(mine[nearest] + (offsets[image] - nearest))
            start, image = start + totals[image], image + 1
        by_place = torch.cat(order).argsort(stable=True)
        rows.append(torch.cat(columns)[by_place])
    width = max(len(row) for row in rows)
    columns = torch.zeros(len(rows), width, dtype=torch.int64)
    new_mask = torch.zeros_like(columns)
    for i, row in enumerate(rows):
        at = slice(width - len(row), width) if left else slice(0, len(row))
        columns[i, at] = row
        new_mask[i, at] = 1
    return Shrunk(columns.to(input_ids.device), new_mask.to(input_ids.device))


def gathered(mask: Tensor) -> Shrunk:
    """All tokens of the prompts, with the padding of [B, S] on the left."""
    order = mask.int().sort(dim=1, stable=True)
    return Shrunk(order.indices, order.values.long())


def untouched(mask: Tensor) -> Shrunk:
    """All columns of the prompts [B, S] where they are."""
    return Shrunk(torch.arange(mask.shape[1], device=mask.device).expand(len(mask), -1), mask.long())


def positions_of(mask: Tensor) -> Tensor:
    """Returns the position of each token as transformers counts them: from 0 at the first token of a row, [B, S]."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
