"""The embedded world: scenes of coloured shapes on low-chroma backgrounds.

A scene is 1 to 4 objects (6 shapes x 8 colours x 2 sizes) that never touch, on one of five kinds of background. Scene
``i`` of seed ``s`` is a pure function of ``(s, i)``: the set is unlimited, any slice of it can be made in any order,
and training and held-out scenes are kept apart by their seeds. All coordinates are fractions of the picture's side,
so one scene can be rendered at any resolution. Objects are saturated and backgrounds nearly grey, which makes colour
segmentation exact.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from vistok.ops.noise import counter_uniform

SHAPES = ("circle", "square", "triangle", "cross", "ring", "diamond")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
BACKGROUNDS = ("plain", "shaded", "striped", "checked", "cloudy")

PALETTE = (
    torch.tensor(
        [
            [214, 39, 40],
            [255, 140, 20],
            [245, 225, 40],
            [40, 165, 60],
            [40, 205, 215],
            [45, 75, 215],
            [140, 60, 190],
            [250, 110, 180],
        ],
        dtype=torch.float32,
    )
    / 255.0
)  # [8, 3], same order as COLOURS
RADII = torch.tensor([0.12, 0.17], dtype=torch.float64)  # same order as SIZES
MAX_OBJECTS = 4
GAP = 0.05  # least distance between the boxes of two objects
LIGHTNESS_STEPS = 10
TINTS = 0.03 * torch.tensor(
    [[0, 0, 0], [1, 0, -1], [-1, 0, 1], [0, 1, 0], [1, 0, 1], [-1, 1, 1], [1, 1, -1]], dtype=torch.float64
)
NOISE_CELLS = 5  # side of the coarse grid that a cloudy background interpolates

# How a scene is composed: probability, and the number of objects in each group of equal shape, colour and size.
COMPOSITIONS: tuple[tuple[float, tuple[int, ...]], ...] = (
    (0.22, (1,)),
    (0.10, (2,)),
    (0.09, (3,)),
    (0.09, (4,)),
    (0.34, (1, 1)),
    (0.05, (2, 1)),
    (0.05, (1, 1, 1)),
    (0.02, (2, 2)),
    (0.02, (3, 1)),
    (0.01, (2, 1, 1)),
    (0.01, (1, 1, 1, 1)),
)


@dataclass(frozen=True)
class Scenes:
    """A batch of B scenes as tensors; object slots beyond a scene's objects are marked absent.

    Attributes:
        index: int64 [B], the scenes' numbers under their seed.
        group: int64 [B, 4], which group of equal objects a slot belongs to, -1 where absent. Groups are in caption
            order.
        shape, colour, size: int64 [B, 4], indices into SHAPES, COLOURS, SIZES (undefined where absent).
        centre: float64 [B, 4, 2], (x, y) in [0, 1], y downwards.
        background: int64 [B], index into BACKGROUNDS.
        tones: float32 [B, 2, 3], the two RGB tones of the background, in [0, 1].
        texture: float64 [B, 4 + NOISE_CELLS**2], angle, period, two phases and the coarse noise, uniforms in (0, 1).
        scale: float64 [B], what the radii of each scene are multiplied by.
    """

    index: torch.Tensor
    group: torch.Tensor
    shape: torch.Tensor
    colour: torch.Tensor
    size: torch.Tensor
    centre: torch.Tensor
    background: torch.Tensor
    tones: torch.Tensor
    texture: torch.Tensor
    scale: torch.Tensor

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows) -> Scenes:
        """The scenes at ``rows`` (a slice, an index tensor or a mask)."""
        return Scenes(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def present(self) -> torch.Tensor:
        """bool [B, 4], True where a slot holds an object."""
        return self.group >= 0

    @property
    def radius(self) -> torch.Tensor:
        """float64 [B, 4], half the side of each object's box."""
        return RADII[self.size] * self.scale[:, None]

    @property
    def kind(self) -> torch.Tensor:
        """int64 [B, 4], shape and colour of each object in one number: ``shape * 8 + colour``, one of 48."""
        return self.shape * len(COLOURS) + self.colour

    @property
    def kinds_present(self) -> torch.Tensor:
        """bool [B, 48], which kinds of object are in each scene."""
        return self._kinds_of(self.present)

    @property
    def largest_kinds(self) -> torch.Tensor:
        """bool [B, 48], which kinds of object are in each scene at the larger of its sizes."""
        radius = self.radius.where(self.present, 0)
        return self._kinds_of(self.present & (radius == radius.amax(1, keepdim=True)))

    def _kinds_of(self, slots: torch.Tensor) -> torch.Tensor:
        found = torch.zeros(len(self), NUM_CLASSES + 1, dtype=torch.bool)
        return found.scatter_(1, torch.where(slots, self.kind, NUM_CLASSES), True)[:, :-1]

    @property
    def label(self) -> torch.Tensor:
        """int64 [B], the class of the scene: the kind of its first object."""
        return self.kind[:, 0]


NUM_CLASSES = len(SHAPES) * len(COLOURS)

# Purposes that key the random draws, so that no two share a number.
_COMPOSITION, _KIND, _BACKGROUND, _TONE, _TEXTURE, _PLACE = range(6)


def sample_scenes(count: int, seed: int, start: int = 0) -> Scenes:
    """Scenes ``start`` to ``start + count - 1`` of the world with this seed.

    Args:
        count: how many, at least 1.
        seed: which world.
        start: number of the first scene.
    """
    return scenes_at(torch.arange(start, start + count), seed)


def scenes_at(index: torch.Tensor, seed: int) -> Scenes:
    """Returns the scenes of these numbers, int64 [B], of the world with this seed."""
    group = _compose(seed, index)
    shape, colour, size = _draw_groups(seed, index, group)
    centre = _place(seed, index, group >= 0, RADII[size])
    background = (counter_uniform(seed, index, _BACKGROUND) * len(BACKGROUNDS)).long()
    slots = torch.arange(4 + NOISE_CELLS**2)
    texture = counter_uniform(seed, index[:, None], _TEXTURE, slots)
    scale = torch.ones(len(index), dtype=torch.float64)
    return Scenes(index, group, shape, colour, size, centre, background, _tones(seed, index), texture, scale)


def shrink(scenes: Scenes, factor: float | torch.Tensor) -> Scenes:
    """Returns the scenes with smaller objects in the same places.

    Args:
        scenes: B scenes.
        factor: of the radii, in (0, 1]; one for all, or one for each [B].
    """
    return replace(scenes, scale=scenes.scale * factor)


def _compose(seed: int, index: torch.Tensor) -> torch.Tensor:
    """Group number of each slot, [B, 4], -1 where absent."""
    table = torch.tensor(
        [
            [g for g, n in enumerate(counts) for _ in range(n)] + [-1] * (MAX_OBJECTS - sum(counts))
            for _, counts in COMPOSITIONS
        ]
    )
    edges = torch.tensor([p for p, _ in COMPOSITIONS], dtype=torch.float64).cumsum(0)[:-1]
    return table[torch.bucketize(counter_uniform(seed, index, _COMPOSITION), edges, right=True)]


def _draw_groups(seed: int, index: torch.Tensor, group: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Shape, colour and size of every slot. Groups of one scene always differ in shape, and mostly in colour."""
    groups = torch.arange(MAX_OBJECTS)
    u = counter_uniform(seed, index[:, None, None], _KIND, groups[:, None], torch.arange(3))  # [B, 4, 3]
    order = counter_uniform(seed, index[:, None], _KIND, MAX_OBJECTS, torch.arange(len(SHAPES))).argsort(1)
    shape = order[:, :MAX_OBJECTS]  # without replacement: captions stay unambiguous without colours
    colour = (u[..., 1] * len(COLOURS)).long()
    size = (u[..., 2] * len(SIZES)).long()
    slot = group.clamp_min(0)
    return tuple(x.gather(1, slot) for x in (shape, colour, size))


def _place(seed: int, index: torch.Tensor, present: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Centres whose boxes lie inside the picture and keep GAP between each other, by rejection, [B, 4, 2]."""
    centre = torch.zeros(*present.shape, 2, dtype=torch.float64)
    need = radius[:, :, None] + radius[:, None, :] + GAP
    matters = (present[:, :, None] & present[:, None, :]).triu(1)
    todo = torch.arange(len(index))
    attempt = 0
    while len(todo):
        # Many proposals at once for the scenes that are left; the first one that fits wins.
        tries = attempt + torch.arange(max(16, 4096 // len(todo)))
        u = counter_uniform(
            seed,
            index[todo][:, None, None, None],
            _PLACE,
            tries[:, None, None],
            torch.arange(MAX_OBJECTS)[:, None],
            torch.arange(2),
        )  # [n, tries, 4, 2]
        margin = radius[todo][:, None, :, None] + 0.02
        proposal = margin + u * (1 - 2 * margin)
        distance = (proposal[:, :, :, None] - proposal[:, :, None]).abs().amax(-1)  # [n, tries, 4, 4]
        fits = ~((distance < need[todo][:, None]) & matters[todo][:, None]).flatten(2).any(-1)
        hit = fits.any(1)
        centre[todo[hit]] = proposal[hit, fits[hit].int().argmax(1)]
        todo = todo[~hit]
        attempt += len(tries)
    return centre


def _tones(seed: int, index: torch.Tensor) -> torch.Tensor:
    """Two nearly grey tones of one tint, out of 10 steps of lightness and 7 tints, [B, 2, 3]."""
    u = counter_uniform(seed, index[:, None], _TONE, torch.arange(3))
    first = (u[:, 0] * LIGHTNESS_STEPS).long()
    apart = 1 + (u[:, 1] * 2).long()  # one or two steps
    second = torch.where(first >= LIGHTNESS_STEPS // 2, first - apart, first + apart)
    light = 0.22 + 0.066 * torch.stack([first, second], 1)  # 0.22 to 0.81
    tint = TINTS[(u[:, 2] * len(TINTS)).long()]
    return (light[..., None] + tint[:, None]).float()
