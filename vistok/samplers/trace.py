"""A picture of a run: which tokens were decided together, and, where they come in no fixed order, when."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vistok.samplers.stats import Stats

SCALE = 4  # the sheet is this many times as large as the picture
# Dark for one token a step, bright for many: anchors of a ramp that reads in grey as well.
RAMP = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], dtype=np.float64)


def acceptance_map(stats: Stats, sample: int, grid: int) -> np.ndarray:
    """Returns the number of tokens decided by the step that decided each token, int64 [h, grid]; an unfinished last row
    is left out.
    """
    counts = stats.step_map(sample)
    return counts[: len(counts) // grid * grid].view(-1, grid).numpy()


def order_map(stats: Stats, sample: int, grid: int) -> np.ndarray:
    """The step that decided each token, from 1; 0 was known. int64 [h, grid]."""
    return stats.step_of[sample].view(-1, grid).numpy()


def heat_map(stats: Stats, sample: int, grid: int, brightest: int | None = None) -> Image.Image:
    """Returns the map of a sample's steps as a picture, one pixel a token; see ``paint_trace``."""
    shown = acceptance_map(stats, sample, grid) if stats.in_order else order_map(stats, sample, grid)
    top = max(2, int(shown.max()) if brightest is None else brightest)
    level = np.log(shown) / np.log(top) if stats.in_order else (shown - 1) / (top - 1)
    level = np.clip(level, 0, 1) * (len(RAMP) - 1)
    colours = np.stack([np.interp(level, range(len(RAMP)), RAMP[:, c]) for c in range(3)], -1)
    if not stats.in_order:
        colours[shown == 0] = 0
    return Image.fromarray(colours.round().astype(np.uint8))


def paint_trace(image: Image.Image, stats: Stats, sample: int, grid: int, brightest: int | None = None) -> Image.Image:
    """Returns the picture, and beside it the map of its steps.

    It tells how many tokens each step decided; where tokens are decided in any order, which step it was: early ones are
    dark, late ones bright, and what was known is black.

    Args:
        image: the finished picture.
        stats: of the batch that it was drawn in.
        sample: its number in the batch.
        grid: tokens of a row.
        brightest: tokens a step, or the step, at the bright end of the ramp; the map's own most if None. Steps of one
            token, and first steps, are dark.

    Returns:
        An RGB picture, twice as wide as high.
    """
    size = (image.width * SCALE, image.height * SCALE)
    sheet = Image.new("RGB", (2 * size[0], size[1]))
    sheet.paste(image.resize(size, Image.Resampling.NEAREST), (0, 0))
    sheet.paste(heat_map(stats, sample, grid, brightest).resize(size, Image.Resampling.NEAREST), (size[0], 0))
    return sheet
