"""Paint regions over a picture: masks, their outlines, points and boxes."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from vistok.data.images import magnification
from vistok.projectors.grounding.interface import Region
from vistok.projectors.grounding.points import NEGATIVE, POSITIVE

_COLOURS = ((255, 64, 160), (64, 200, 255), (255, 200, 40), (120, 230, 90))  # a region each, in turn
_POSITIVE, _NEGATIVE, _RIM = (40, 220, 90), (235, 60, 60), (20, 20, 26)
_VEIL = 0.1  # opacity of a mask: its own colours stay
_DIM = 0.45  # brightness outside of all masks


def paint(picture: Image.Image, regions: tuple[Region, ...], least_side: int = 384) -> Image.Image:
    """Returns the picture with what was found in it.

    The rest of the picture is dimmed where a mask tells what belongs to it. Positive points are green, negative red.

    Args:
        picture: RGB.
        regions: in its pixels.
        least_side: small pictures are enlarged to this.

    Returns:
        RGB picture.
    """
    scale = magnification(picture.size, least_side)
    size = (picture.width * scale, picture.height * scale)
    canvas = np.asarray(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
    masks = [None if region.mask is None else _enlarged(region.mask, scale) for region in regions]
    shown = [mask for mask in masks if mask is not None and mask.any()]
    if shown:
        outside = ~np.any(shown, axis=0)
        canvas[outside] *= _DIM
    width = max(2, min(size) // 160)
    for number, mask in enumerate(masks):
        if mask is not None:
            colour = np.array(_COLOURS[number % len(_COLOURS)], dtype=np.float32)
            canvas[mask] = (1 - _VEIL) * canvas[mask] + _VEIL * colour
            canvas[_outline(~mask, width)] = _RIM
            canvas[_outline(mask, width)] = colour
    painted = Image.fromarray(canvas.round().astype(np.uint8))
    draw = ImageDraw.Draw(painted)
    for number, region in enumerate(regions):
        colour = _COLOURS[number % len(_COLOURS)]
        if region.box is not None:
            corners = [value * scale for value in region.box]
            x0, y0, x1, y1 = (*corners[:2], max(corners[0], corners[2] - 1), max(corners[1], corners[3] - 1))
            draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=_RIM, width=2 * width)
            draw.rectangle((x0, y0, x1, y1), outline=colour, width=width)
        if region.points is not None:
            _points(draw, region, scale, max(3, min(size) // 80))
    return painted


def _enlarged(mask: Tensor, scale: int) -> np.ndarray:
    """Returns a mask at a multiple of its size, its steps rounded off."""
    size = tuple(extent * scale for extent in mask.shape)
    return (F.interpolate(mask[None, None].float(), size=size, mode="bilinear")[0, 0] > 0.5).cpu().numpy()


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    solid = torch.from_numpy(mask)[None, None].float()
    shrunk = 1 - F.max_pool2d(1 - solid, 2 * width + 1, stride=1, padding=width)
    return mask & (shrunk[0, 0] < 0.5).numpy()


def _points(draw: ImageDraw.ImageDraw, region: Region, scale: int, radius: int) -> None:
    for (x, y), label in zip(region.points.xy.tolist(), region.points.labels.tolist(), strict=True):
        if label not in (POSITIVE, NEGATIVE):
            continue
        centre = ((x + 0.5) * scale, (y + 0.5) * scale)
        fill = _POSITIVE if label == POSITIVE else _NEGATIVE
        draw.circle(centre, radius, fill=fill, outline=(255, 255, 255), width=max(1, radius // 3))
