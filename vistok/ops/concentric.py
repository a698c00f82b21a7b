"""Concentric causal attention (CCA-LLaVA, NeurIPS 2024, arXiv 2410.15926): positions and mask of an image in a prompt.

Image tokens are numbered by ring from the border inwards, so a picture of H x W tokens spans ceil(min(H, W) / 2)
positions instead of H * W, and the centre is closest to the text that follows. Inside the image a token attends to
its own ring and all outer ones; everything else is causal in sequence order. The authors' code is bound to one 24 x 24
image and a batch of one; here grids may be odd or oblong and a prompt may hold several images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError


class ConcentricLayout(NamedTuple):
    """Per token of a prompt: position, ring (0 outermost, -1 for text), and image (-1 for text); int64 [S] each."""

    position: Tensor
    ring: Tensor
    image: Tensor


def ring_index(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Distance of each grid cell from the border, int64 [height, width]."""
    row = torch.arange(height, device=device)
    column = torch.arange(width, device=device)
    return torch.minimum(torch.minimum(row, height - 1 - row)[:, None], torch.minimum(column, width - 1 - column)[None])


def concentric_layout(
    length: int, images: list[tuple[int, int, int]], device: torch.device | None = None
) -> ConcentricLayout:
    """Positions and rings of a prompt.

    Args:
        length: tokens of the prompt, image tokens included.
        images: (start, height, width) of each image, in order; it fills height * width tokens from ``start`` on.
        device: of the result.

    Raises:
        VistokError: if images overlap, are unsorted, or leave the prompt.
    """
    position = torch.ones(length, dtype=torch.int64, device=device)  # first the step that each token makes
    ring = torch.full((length,), -1, device=device)
    image = torch.full((length,), -1, device=device)
    free = 0
    for number, (start, height, width) in enumerate(images):
        end = start + height * width
        if start < free or end > length or height < 1 or width < 1:
            raise VistokError(
                f"image {number} covers tokens {start}..{end} of a prompt of {length}: images must be in order, "
                "apart from each other, not empty and inside the prompt."
            )
        ring[start:end] = ring_index(height, width, device).flatten()
        image[start:end] = number
        position[start:end] = 0
        position[end - 1] = (min(height, width) + 1) // 2  # the whole image makes as many steps as it has rings
        free = end
    before = position.cumsum(0) - position  # within an image: the position of its outermost ring
    return ConcentricLayout(before + ring.clamp(min=0), ring, image)


def concentric_positions(visual: Tensor, present: Tensor, height: int, width: int) -> Tensor:
    """Positions of a batch of prompts whose images all have one grid, without a loop and without a device sync.

    An image token may attend to what has no larger position; so may every other token, as text is numbered in order.

    Args:
        visual: image tokens, bool [B, S]; ``height * width`` in turn are an image.
        present: 0 at padding, on either side, [B, S].
        height, width: of the grid.

    Returns:
        int64 [B, S], 0 at padding.
    """
    visual, present = visual & present.bool(), present.bool()
    ring = ring_index(height, width, visual.device).flatten()
    cell = (visual.long().cumsum(1) - 1).clamp(min=0) % len(ring)
    rings = (min(height, width) + 1) // 2
    step = torch.where(visual, (cell == len(ring) - 1) * rings, present.long())  # an image steps at its end
    before = step.cumsum(1) - step
    return (before + visual * ring[cell]).masked_fill(~present, 0)


def concentric_mask(layout: ConcentricLayout) -> Tensor:
    """Bool [S, S], True where query (row) may attend to key (column)."""
    order = torch.arange(len(layout.ring), device=layout.ring.device)
    return concentric_mask_mod(layout)(0, 0, order[:, None], order[None])


def concentric_mask_mod(layout: ConcentricLayout) -> Callable[[Any, Any, Tensor, Tensor], Tensor]:
    """The same mask in FlexAttention's form (batch, head, query, key) -> bool, so that a GPU stores no [S, S]."""
    ring, image = layout.ring, layout.image

    def visible(batch: Any, head: Any, query: Tensor, key: Tensor) -> Tensor:
        same_image = (image[query] >= 0) & (image[query] == image[key])
        return torch.where(same_image, ring[query] >= ring[key], key <= query)

    return visible
