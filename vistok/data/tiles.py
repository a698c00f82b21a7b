"""Pictures larger than a network takes, as overlapping squares, and back without seams.

Squares lie on an even grid that ends with the picture, so neighbours overlap by what was asked for at least. Where they
do, their shares fall linearly towards their edges, so that an error of one of them fades into the other's. A side that
is shorter than a square is filled up with its mirror image, of which nothing is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError


@dataclass(frozen=True)
class Tiling:
    """Where the squares of a picture are.

    Attributes:
        height, width: of the picture in pixels.
        side: of a square.
        overlap: least pixels that neighbours share.

    Raises:
        VistokError: an empty picture or square, or squares that overlap by more than half.
    """

    height: int
    width: int
    side: int
    overlap: int

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.side) < 1:
            raise VistokError(f"a picture of {self.width}x{self.height} pixels has no tiles of {self.side} pixels.")
        if not 0 <= self.overlap <= self.side // 2:
            raise VistokError(
                f"tiles of {self.side} pixels can overlap by 0 to {self.side // 2} pixels, got {self.overlap}."
            )

    def _number(self, length: int) -> int:
        return max(1, -(-(length - self.overlap) // (self.side - self.overlap)))

    def _starts(self, length: int) -> list[int]:
        count, last = self._number(length), max(0, length - self.side)
        return [round(last * i / max(1, count - 1)) for i in range(count)]

    @property
    def count(self) -> int:
        """How many squares there are."""
        return self._number(self.height) * self._number(self.width)

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Row and column of the upper left pixel of every square, row by row."""
        return [(top, left) for top in self._starts(self.height) for left in self._starts(self.width)]

    def cut(self, image: Tensor) -> Tensor:
        """A picture [C, height, width] to its squares [tiles, C, side, side]."""
        padded = _mirror(_mirror(image, self.side, 1), self.side, 2)
        return torch.stack([padded[:, y : y + self.side, x : x + self.side] for y, x in self.corners])

    def join(self, tiles: Tensor) -> Tensor:
        """Squares [tiles, C, side, side] to the picture [C, height, width]."""
        rows, columns = self._starts(self.height), self._starts(self.width)
        high, wide = max(self.height, self.side), max(self.width, self.side)
        image = tiles.new_zeros(tiles.shape[1], high, wide, dtype=torch.float32)
        total = tiles.new_zeros(high, wide, dtype=torch.float32)
        squares = iter(tiles.float())
        for row, y in enumerate(rows):
            for column, x in enumerate(columns):
                weight = _share(rows, row, self.side)[:, None] * _share(columns, column, self.side)
                weight = weight.to(tiles.device)
                image[:, y : y + self.side, x : x + self.side] += weight * next(squares)
                total[y : y + self.side, x : x + self.side] += weight
        return (image / total)[:, : self.height, : self.width]


def _mirror(image: Tensor, side: int, axis: int) -> Tensor:
    """The picture with its mirror image behind it, again and again, until an axis is as long as a square."""
    while image.shape[axis] < side:
        image = torch.cat([image, image.flip(axis)], axis)
    return image


def _share(starts: list[int], number: int, side: int) -> Tensor:
    """How much each pixel along an axis of a square counts: 1, falling towards neighbours where it overlaps them."""
    share = torch.ones(side)
    for other in (number - 1, number + 1):
        if 0 <= other < len(starts) and (common := side - abs(starts[other] - starts[number])) > 0:
            ramp = (torch.arange(common) + 0.5) / common
            if other < number:
                share[:common] *= ramp
            else:
                share[side - common :] *= ramp.flip(0)
    return share
