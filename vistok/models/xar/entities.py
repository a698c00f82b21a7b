"""The entities X of xAR (arXiv 2502.20388, section 3.1): into what, and in which order, a picture's tokens are divided.

An entity is int64 [n, m]: its n tokens, each the mean of the latents at m raster positions. The published weights draw
cells; what the paper calls token, subsample, scale and whole image is defined here by itself. All but scales divide the
grid, so that m is 1; a pyramid of scales repeats it coarser, and only its last entity is the picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name

Positions = list[Tensor]


def _raster(grid: int) -> Tensor:
    return torch.arange(grid**2).view(grid, grid)


def token(grid: int) -> Positions:
    """Returns single tokens in raster order."""
    return cell(grid, 1)


def cell(grid: int, side: int = 8) -> Positions:
    """Returns blocks of ``side`` x ``side`` tokens in raster order, in raster order inside."""
    _divides(grid, side, "cell")
    blocks = _raster(grid).unfold(0, side, side).unfold(1, side, side)  # [rows, columns, side, side]
    return list(blocks.reshape(-1, side**2, 1))


def subsample(grid: int, stride: int = 2) -> Positions:
    """Returns every ``stride``-th token of every ``stride``-th row, one entity for each offset, in raster order."""
    _divides(grid, stride, "subsample")
    return [_raster(grid)[a::stride, b::stride].reshape(-1, 1) for a in range(stride) for b in range(stride)]


def scale(grid: int, coarsest: int = 1) -> Positions:
    """Returns the grid averaged over areas to ``coarsest`` x ``coarsest`` tokens, and twice as fine each time."""
    sides = [coarsest]
    while 0 < sides[-1] < grid:
        sides.append(2 * sides[-1])
    if sides[-1] != grid:
        raise VistokError(
            f"a grid of {grid} tokens a side is not {coarsest} doubled a few times: give another coarsest scale, as in "
            f"scale:{grid // (grid & -grid)}."
        )
    return [torch.cat(cell(grid, grid // side), 1).T for side in sides]


def image(grid: int) -> Positions:
    """Returns the whole picture as one entity: plain flow matching."""
    return cell(grid, grid)


def _divides(grid: int, side: int, what: str) -> None:
    if side < 1 or grid % side:
        raise VistokError(f"{what}:{side} does not divide a grid of {grid} tokens a side: choose a divisor.")


ENTITIES: dict[str, Callable[..., Positions]] = {
    "token": token,
    "cell": cell,
    "subsample": subsample,
    "scale": scale,
    "image": image,
}


@dataclass(frozen=True)
class Entities:
    """The entities of one shape of picture, N tokens in all.

    Attributes:
        grid: tokens of a side.
        positions: raster positions that each token of each entity is the mean of.
    """

    grid: int
    positions: tuple[Tensor, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Tokens of each entity."""
        return tuple(len(each) for each in self.positions)

    @cached_property
    def places(self) -> Tensor:
        """Row and column of each token's centre, float32 [N, 2]."""
        centre = [torch.stack([p // self.grid, p % self.grid], -1).float().mean(1) for p in self.positions]
        return torch.cat(centre)

    @cached_property
    def numbers(self) -> Tensor:
        """Number of the entity of each token, int64 [N]."""
        return torch.cat([torch.full((size,), k) for k, size in enumerate(self.sizes)])

    def split(self, tokens: Tensor) -> Tensor:
        """Returns tokens [B, L, D] in raster order as the sequence of all entities, [B, N, D]."""
        return torch.cat([tokens[:, p.to(tokens.device)].mean(2) for p in self.positions], 1)

    def join(self, sequence: Tensor) -> Tensor:
        """Returns the picture's tokens [B, L, D] in raster order from the sequence of all entities, [B, N, D]."""
        fine = [p for p in self.positions if p.shape[1] == 1]
        order = torch.cat(fine)[:, 0].to(sequence.device)
        return sequence[:, -len(order) :][:, order.argsort()]


def parse_entities(text: str, grid: int) -> Entities:
    """Returns the entities that a text such as ``cell:8``, ``subsample:2``, ``scale:1``, ``token`` or ``image`` names.

    Args:
        text: a name, and the number behind a colon that its function takes.
        grid: tokens of a picture's side.

    Raises:
        VistokError: an unknown entity, or a number that does not fit the grid.
    """
    name, colon, number = text.partition(":")
    if name not in ENTITIES:
        raise unknown_name("entity of xAR", name, list(ENTITIES))
    if not colon:
        return Entities(grid, tuple(ENTITIES[name](grid)))
    if name in ("token", "image") or not number.isdecimal():
        raise VistokError(f"'{text}' is no entity of xAR: write token, cell:8, subsample:2, scale:1 or image.")
    return Entities(grid, tuple(ENTITIES[name](grid, int(number))))


def cell_side(grid: int, cells: int) -> int:
    """Returns the side of the square cells of which a grid has so many, the published ``clusters``.

    Raises:
        VistokError: square cells cannot do it.
    """
    rows = math.isqrt(cells)
    if cells < 1 or rows**2 != cells or grid % rows:
        raise VistokError(f"a grid of {grid} tokens a side does not divide into {cells} square cells.")
    return grid // rows
