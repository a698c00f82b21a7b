"""Scenes of the embedded world as a source."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from vistok.data.scenes import COLOURS, SHAPES, Scenes, render, scenes_at, statements
from vistok.data.scenes.splits import HELD_OUT, single_object_scenes
from vistok.train.sources.interface import Draw, Source, in_passes


class ScenesSource(Source):
    """Scenes of a world, in order.

    Args:
        size: side in pixels.
        seed: the world.
        length: how many scenes are seen before the first comes again; without end if None.
    """

    order_seed: int | None = None
    classes = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)
    description = "vistok.data.scenes"

    def __init__(self, size: int, seed: int, length: int | None = None):
        self.size, self.seed, self.length = size, seed, length
        self.description = f"{self.description}, seed {seed}"

    def __len__(self) -> int:
        return sys.maxsize if self.length is None else self.length

    def draw(self, start: int, count: int) -> Draw:
        return in_passes(start, count, len(self), self.order_seed)

    def scenes(self, index: Tensor) -> Scenes:
        """Returns the scenes of these numbers."""
        return scenes_at(index, self.seed)

    def pictures(self, index: Tensor) -> Tensor:
        return render(self.scenes(index), self.size)

    def augmented(self, draw: Draw) -> Tensor:
        return self.pictures(draw.index)

    def captions(self, draw: Draw) -> list[str]:
        return [said.text for said in statements(self.scenes(draw.index), draw.passes.tolist())]

    def labels(self, index: Tensor) -> Tensor:
        return self.scenes(index).label

    def held_out(self) -> ScenesSource:
        return type(self)(self.size, HELD_OUT)


class SingleObjectScenes(ScenesSource):
    """Scenes with one object, which their class says all about; each pass is in an order of its own."""

    order_seed = 0
    description = "vistok.data.scenes of one object"

    def __init__(self, size: int, seed: int, length: int | None = None):
        super().__init__(size, seed, length)
        self._numbers = torch.empty(0, dtype=torch.long)
        self._chunks = 0

    def scenes(self, index: Tensor) -> Scenes:
        while len(self._numbers) <= int(index.max()):
            found = single_object_scenes(self.seed, self._chunks)
            self._numbers = torch.cat([self._numbers, found.index])
            self._chunks += 1
        return scenes_at(self._numbers[index], self.seed)
