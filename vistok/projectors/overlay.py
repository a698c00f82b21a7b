"""Draw over a picture which of its patches were kept."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from vistok.data.images import magnification
from vistok.errors import VistokError
from vistok.models.families.tokens import Canvas

_DROPPED = (24, 24, 32, 190)
_EDGE = (255, 214, 64, 255)


def kept_map(index: Tensor, grid: tuple[int, int], canvas: Canvas | None = None) -> Tensor:
    """Kept tokens as a map: of the crops' unpadded part where there are crops, else of the one view.

    Args:
        index: of the kept tokens, as in ``Report.kept``.
        grid: rows and columns of tokens of a view.
        canvas: layout of the crops.

    Returns:
        bool [rows, columns].
    """
    height, width = grid
    patches = index[index >= 0]
    if canvas is None:
        flat = torch.zeros(height * width, dtype=torch.bool)
        flat[patches] = True
        return flat.view(height, width)
    flat = torch.zeros((1 + canvas.rows * canvas.cols) * height * width, dtype=torch.bool)
    flat[patches] = True
    crops = flat[height * width :].view(canvas.rows, canvas.cols, height, width).transpose(1, 2)
    full = crops.reshape(canvas.rows * height, canvas.cols * width)
    return full[canvas.top : canvas.bottom, canvas.left : canvas.right]


def tiles_map(kept: list[Tensor], grid: tuple[int, int], tiles: tuple[int, int]) -> Tensor:
    """Kept tokens of a picture in tiles, which are row by row its first views, as one map.

    Args:
        kept: index of the kept tokens of each tile, as in ``Report.kept``; those of a thumbnail behind them are left
            out.
        grid: rows and columns of tokens of a tile.
        tiles: rows and columns of tiles.

    Returns:
        bool [rows, columns].

    Raises:
        VistokError: there are fewer tiles than that.
    """
    rows, cols = tiles
    if len(kept) < rows * cols:
        raise VistokError(f"the model saw {len(kept)} tiles, and the picture makes {rows}x{cols}: no overlay is drawn.")
    maps = torch.stack([kept_map(index, grid) for index in kept[: rows * cols]]).unflatten(0, (rows, cols))
    return maps.transpose(1, 2).reshape(rows * grid[0], cols * grid[1])


def overlay(picture: Image.Image, kept: Tensor, least_side: int = 336) -> Image.Image:
    """Darken the dropped patches and outline the kept ones.

    Args:
        picture: what the map covers, whole.
        kept: bool [rows, columns].
        least_side: small pictures are enlarged to this.

    Returns:
        RGB picture.
    """
    scale = magnification(picture.size, least_side)
    picture = picture.convert("RGBA").resize((picture.width * scale, picture.height * scale), Image.Resampling.LANCZOS)
    rows, cols = kept.shape
    layer = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(layer)
    for row, line in enumerate(kept.tolist()):
        for col, stays in enumerate(line):
            left, top = col * picture.width // cols, row * picture.height // rows
            right, bottom = (col + 1) * picture.width // cols - 1, (row + 1) * picture.height // rows - 1
            box = (left, top, max(left, right), max(top, bottom))
            draw.rectangle(box, fill=None if stays else _DROPPED, outline=_EDGE if stays else None)
    return Image.alpha_composite(picture, layer).convert("RGB")
