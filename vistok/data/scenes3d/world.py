"""The embedded 3D world: rooms in which boxes, balls and cylinders stand on the floor or on one another.

Room ``i`` of seed ``s`` is a pure function of ``(s, i)``. A room is 2 to 8 solids (3 shapes x 8 colours x 2 sizes) on a
floor of one by one; x points right, y away from the viewer, z up. Solids arrive as a scan would give them once it is
segmented: points of their surfaces with colours, both with noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vistok.data.scenes.world import COLOURS, PALETTE, SIZES
from vistok.errors import VistokError
from vistok.ops.noise import counter_normal, counter_uniform

SHAPES = ("box", "ball", "cylinder")
RADII = torch.tensor([0.05, 0.08], dtype=torch.float64)  # half the height of a solid, same order as SIZES
MAX_OBJECTS = 8
GAP = 0.04  # least distance between solids on the floor
TRIES = 48  # places that are drawn for each solid; one that fits nowhere is left out
STACKED = 0.4  # of small solids, where there is a large box to stand on
POINT_NOISE, COLOUR_NOISE = 0.002, 0.05

_COUNT, _KIND, _PLACE, _STACK, _SURFACE, _SENSOR, _PAINT = range(7)  # purposes that key the random draws


@dataclass(frozen=True)
class Rooms:
    """A batch of B rooms as tensors; slots behind a room's solids are absent.

    Attributes:
        seed: of the world.
        index: int64 [B], the rooms' numbers.
        present: bool [B, 8].
        shape, colour, size: int64 [B, 8], indices into SHAPES, COLOURS, SIZES.
        centre: float64 [B, 8, 3].
        support: int64 [B, 8], the slot that a solid stands on, -1 for the floor.
    """

    seed: int
    index: Tensor
    present: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    centre: Tensor
    support: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows) -> Rooms:
        """The rooms at ``rows`` (a slice, an index tensor or a mask)."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "seed"}
        return Rooms(seed=self.seed, **columns)

    @property
    def radius(self) -> Tensor:
        """float64 [B, 8], half the height of each solid."""
        return RADII[self.size]


def sample_rooms(count: int, seed: int, start: int = 0, objects: tuple[int, int] = (2, MAX_OBJECTS)) -> Rooms:
    """Rooms ``start`` to ``start + count - 1`` of the world with this seed.

    Args:
        count: how many, at least 1.
        seed: which world.
        start: number of the first room.
        objects: least and greatest number of solids; where one fits nowhere, there are fewer.

    Raises:
        VistokError: the numbers of solids are no range within 1 to 8.
    """
    least, most = objects
    if not 1 <= least <= most <= MAX_OBJECTS:
        raise VistokError(f"rooms hold 1 to {MAX_OBJECTS} solids; {least} to {most} is no range of that.")
    index = torch.arange(start, start + count)
    slots = torch.arange(MAX_OBJECTS)
    number = least + (counter_uniform(seed, index, _COUNT) * (most - least + 1)).long()
    draws = counter_uniform(seed, index[:, None, None], _KIND, slots[:, None], torch.arange(3))
    sizes = torch.tensor([len(SHAPES), len(COLOURS), len(SIZES)])
    shape, colour, size = (draws * sizes).long().unbind(-1)
    wanted = slots < number[:, None]
    centre, support, present = _place(seed, index, wanted, shape, size)
    return Rooms(seed, index, present, shape, colour, size, centre, support)


def _place(seed: int, index: Tensor, wanted: Tensor, shape: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centres, supports and which solids found a place; slot by slot, the first drawn place that is free."""
    radius = RADII[size]
    centre = torch.zeros(*wanted.shape, 3, dtype=torch.float64)
    support = torch.full(wanted.shape, -1)
    present = torch.zeros_like(wanted)
    rows = torch.arange(len(index))
    tries = torch.arange(TRIES)
    for slot in range(wanted.shape[1]):
        r = radius[:, slot, None]
        drawn = counter_uniform(seed, index[:, None, None], _PLACE, slot, tries[:, None], torch.arange(2))
        spots = r[..., None] + drawn * (1 - 2 * r[..., None])  # [B, T, 2]
        gaps = (spots[:, :, None] - centre[:, None, :, :2]).norm(dim=-1) - r[..., None] - radius[:, None]
        free = ((gaps > GAP) | ~present[:, None]).all(-1)
        found, first = free.max(1)
        centre[:, slot, :2] = spots[rows, first]
        centre[:, slot, 2] = radius[:, slot]
        # A small solid may stand on a large box that bears nothing yet.
        bearing = (support[:, :, None] == torch.arange(wanted.shape[1])).any(1)
        can_bear = present & (shape == 0) & (size == 1) & ~bearing & (support < 0)
        under = can_bear.long().argmax(1)
        stacked = can_bear.any(1) & (size[:, slot] == 0) & (counter_uniform(seed, index, _STACK, slot) < STACKED)
        top = centre[rows, under] + torch.tensor([0.0, 0, 1]) * (radius[rows, under] + radius[:, slot])[:, None]
        centre[:, slot] = torch.where(stacked[:, None], top, centre[:, slot])
        support[:, slot] = torch.where(stacked & wanted[:, slot], under, -1)
        present[:, slot] = wanted[:, slot] & (found | stacked)
    return centre, support.masked_fill(~present, -1), present


def point_clouds(rooms: Rooms, points: int = 64) -> Tensor:
    """Points of each solid's surface, x, y, z, red, green, blue, float32 [B, 8, points, 6]; zero where absent."""
    numbers = torch.arange(points)
    keys = (rooms.index[:, None, None], torch.arange(MAX_OBJECTS)[:, None], numbers)
    u, v, w = (counter_uniform(rooms.seed, keys[0], _SURFACE, keys[1], keys[2], axis) for axis in range(3))
    turn = 2 * math.pi * u
    ring = torch.stack([turn.cos(), turn.sin()], -1)
    height = 2 * v - 1
    ball = torch.cat([ring * (1 - height[..., None] ** 2).sqrt(), height[..., None]], -1)
    wall = torch.cat([ring, height[..., None]], -1)
    lid = torch.cat([ring * v.sqrt()[..., None], torch.where(w * 3 < 0.5, -1.0, 1.0)[..., None]], -1)
    cylinder = torch.where((w * 3 < 1)[..., None], lid, wall)  # a third of the surface are the two lids
    face = (w * 6).long()
    square = torch.stack([2 * u - 1, 2 * v - 1], -1)
    sign = (face % 2 * 2 - 1).double()[..., None]
    sides = [torch.cat([square[..., :axis], sign, square[..., axis:]], -1) for axis in range(3)]
    box = torch.stack(sides).gather(0, (face // 2)[None, ..., None].expand(1, *face.shape, 3))[0]
    unit = torch.stack([box, ball, cylinder], 2)  # [B, 8, shapes, P, 3]
    which = rooms.shape[:, :, None, None, None].expand(-1, -1, 1, points, 3)
    surface = unit.gather(2, which)[:, :, 0] * rooms.radius[..., None, None] + rooms.centre[:, :, None]
    keys = (rooms.index[:, None, None, None], torch.arange(MAX_OBJECTS)[:, None, None], numbers[:, None])
    axes = torch.arange(3)
    surface = surface + POINT_NOISE * counter_normal(rooms.seed, keys[0], _SENSOR, *keys[1:], axes)
    paint = PALETTE[rooms.colour][:, :, None] + COLOUR_NOISE * counter_normal(
        rooms.seed, keys[0], _PAINT, *keys[1:], axes
    )
    cloud = torch.cat([surface, paint.clamp(0, 1)], -1).float()
    return cloud * rooms.present[..., None, None]


def locations(clouds: Tensor) -> Tensor:
    """Centre and size of the box around each cloud [B, N, P, 6], float32 [B, N, 6]."""
    low, high = clouds[..., :3].amin(2), clouds[..., :3].amax(2)
    return torch.cat([(low + high) / 2, high - low], -1)


def mean_colours(clouds: Tensor) -> Tensor:
    """Each cloud's colour as one Gaussian, weight and mean RGB, float32 [B, N, 1, 4]."""
    rgb = clouds[..., 3:].mean(2)
    return torch.cat([torch.ones_like(rgb[..., :1]), rgb], -1)[:, :, None]
