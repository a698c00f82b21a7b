"""The exact detector of the embedded world: colour segmentation, then shape classification by template overlap.

Objects of ``vistok.data.scenes`` are saturated and backgrounds nearly grey, so hue and chroma segment a picture; each
connected region is then compared with the silhouettes of all shapes. A region that overlaps no silhouette well
is reported with a low score: a generated picture whose objects are malformed does not count as right.

How much of a pixel an object covers is read from its chroma, so blurred edges count in part; the silhouettes are
those of both sizes, moved by fractions of a pixel, and the best overlap names shape and size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vistok.data.scenes import COLOURS, PALETTE, SHAPES, SIZES, shape_distance
from vistok.data.scenes.world import RADII

MIN_CHROMA = 0.22  # backgrounds stay below 0.1, objects above 0.45; edges between lie on the way
MIN_AREA = 0.006  # of the picture; the smallest object covers 0.02
MARGIN = 2  # pixels around a region in which its blurred edge is looked at
CENTROIDS = dict.fromkeys(SHAPES, 0.0) | {"triangle": 0.7 / 3}  # how far below its centre a shape's mass lies
SHIFTS = (-0.75, 0.0, 0.75)  # pixels by which silhouettes are moved along each axis


@dataclass(frozen=True)
class SceneObject:
    """One object.

    Attributes:
        shape, colour, size: names from SHAPES, COLOURS, SIZES.
        box: (x0, y0, x1, y1) in pixels.
        score: overlap (intersection over union) with the shape's silhouette, in [0, 1].
        area: pixels.
    """

    shape: str
    colour: str
    size: str
    box: tuple[int, int, int, int]
    score: float
    area: int

    @property
    def centre(self) -> tuple[float, float]:
        """Returns the centre of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


def coverage(images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns how much of every pixel an object covers, and the nearest object colour.

    Args:
        images: [B, 3, H, W] in [-1, 1].

    Returns:
        Coverage in [0, 1], float32 [B, H, W], and indices into COLOURS, int64 [B, H, W].
    """
    rgb = images.float().clamp(-1, 1) / 2 + 0.5
    chroma = rgb.amax(1) - rgb.amin(1)
    # Direction of the colour once its grey is taken out: mixing with a grey background does not change it.
    tint = torch.nn.functional.normalize(rgb - rgb.mean(1, keepdim=True), dim=1)
    palette = PALETTE.to(images.device)
    reference = torch.nn.functional.normalize(palette - palette.mean(1, keepdim=True), dim=1)
    nearest = torch.einsum("bchw,kc->bkhw", tint, reference).argmax(1)
    full = (palette.amax(1) - palette.amin(1))[nearest]
    share = (chroma / full).clamp(max=1)
    return torch.where(chroma > MIN_CHROMA / 2, share, 0), nearest


def detect(images: Tensor, min_score: float = 0.0) -> list[list[SceneObject]]:
    """Returns the objects in pictures.

    Args:
        images: [B, 3, H, W] in [-1, 1], or uint8 in [0, 255].
        min_score: least overlap with a silhouette.

    Returns:
        For each picture its objects, largest first.
    """
    return [sorted((d for d, _ in found if d.score >= min_score), key=lambda d: -d.area) for found in _regions(images)]


def segment(images: Tensor) -> Tensor:
    """Returns which shape every pixel of pictures belongs to: the number in SHAPES, -1 for background; int64 [B, H, W].

    Args:
        images: as of ``detect``.
    """
    maps = torch.full((len(images), *images.shape[-2:]), -1)
    for shapes, found in zip(maps, _regions(images), strict=True):
        for each, inside in found:
            shapes[torch.from_numpy(inside)] = SHAPES.index(each.shape)
    return maps


def _regions(images: Tensor) -> Iterator[list[tuple[SceneObject, np.ndarray]]]:
    """Yields the objects of each picture, each with its pixels, bool [H, W]."""
    from scipy import ndimage

    if images.dtype == torch.uint8:
        images = images.float() / 127.5 - 1
    covered, colours = (x.cpu().numpy() for x in coverage(images))
    for share, colour in zip(covered, colours, strict=True):
        # A region is one patch of saturated pixels; its colour is the majority inside it.
        regions, count = ndimage.label(share > 0.45)
        found = []
        for i, box in enumerate(ndimage.find_objects(regions, count), start=1):
            mask = regions == i
            area = int(mask.sum())
            if area < MIN_AREA * share.size:
                continue
            votes = np.bincount(colour[mask], minlength=len(COLOURS))
            # Other regions' pixels are not this object's edge.
            own = np.where((regions == 0) | (regions == i), share, 0)
            shape, size, score = _fit(own, box)
            corners = (box[1].start, box[0].start, box[1].stop, box[0].stop)
            found.append((SceneObject(shape, COLOURS[int(votes.argmax())], size, corners, score, area), mask))
        yield found


def _fit(share: np.ndarray, box: tuple[slice, slice]) -> tuple[str, str, float]:
    """Shape, size and overlap of the silhouette that fits a region best."""
    height, width = share.shape
    rows = slice(max(0, box[0].start - MARGIN), min(height, box[0].stop + MARGIN))
    columns = slice(max(0, box[1].start - MARGIN), min(width, box[1].stop + MARGIN))
    seen = torch.from_numpy(share[rows, columns])
    y, x = torch.meshgrid(
        torch.arange(rows.start, rows.stop) + 0.5, torch.arange(columns.start, columns.stop) + 0.5, indexing="ij"
    )
    total = seen.sum()
    centre_x, centre_y = (seen * x).sum() / total, (seen * y).sum() / total
    silhouettes = _silhouettes(x - centre_x, y - centre_y, max(share.shape))
    overlap = torch.minimum(silhouettes, seen).sum((-2, -1)) / torch.maximum(silhouettes, seen).sum((-2, -1))
    best = overlap.flatten(2).amax(2)  # [6, 2]
    shape, size = divmod(int(best.argmax()), len(SIZES))
    return SHAPES[shape], SIZES[size], float(best.max())


def _silhouettes(x: Tensor, y: Tensor, side: int) -> Tensor:
    """Coverage by every shape, size and shift, centred on their centroids, [6, 2, shifts, h, w]."""
    shifts = torch.tensor([(dx, dy) for dx in SHIFTS for dy in SHIFTS])[:, :, None, None]
    radius = (RADII.float() * side)[:, None, None, None]
    u, v = (x - shifts[:, 0]) / radius, (y - shifts[:, 1]) / radius  # [2, shifts, h, w]
    return torch.stack(
        [(0.5 - shape_distance(shape, u, v + CENTROIDS[shape]) * radius).clamp(0, 1) for shape in SHAPES]
    )
