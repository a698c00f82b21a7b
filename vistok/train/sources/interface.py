"""The protocol of sources, the entries of ``data`` that choose one, and the order in which one is gone through."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops.noise import derive_seed


@dataclass(frozen=True, kw_only=True)
class PictureData:
    """Entries of ``data`` of every task that trains on pictures.

    Attributes:
        source: ``scenes``, the embedded world, or ``folder``, pictures of one's own.
        path: the folder.
        held_out: a folder of pictures to evaluate on; without it one picture in sixteen of ``path`` is kept for this.
        seed: the world that is trained on, or the order and the crops of a folder's pictures.
        pictures: how many are trained on; all of a folder, and scenes without end, if absent.
        eval_pictures: how many held-out pictures are evaluated on, at most.
    """

    source: Literal["scenes", "folder"] = "scenes"
    path: str | None = None
    held_out: str | None = None
    seed: int = 0
    pictures: int | None = field(default=None, metadata={"was": "scenes"})
    eval_pictures: int = field(default=256, metadata={"was": "eval_scenes"})

    def __post_init__(self) -> None:
        if empty := [name for name in ("path", "held_out") if getattr(self, name) == ""]:
            raise VistokError(f"'data.{empty[0]}' is empty: name a folder, or leave it out.")


class Draw(NamedTuple):
    """Which pictures a stretch of the training sees.

    Attributes:
        index: their numbers, int64 [B].
        passes: how often all pictures were seen before, int64 [B]; it draws crops and wordings anew.
    """

    index: Tensor
    passes: Tensor


class Source(Protocol):
    """Pictures by number, as pixels [B, 3, size, size] in [-1, 1].

    Attributes:
        size: side of the pictures in pixels.
        description: what they are, for a model's card.
        classes: names of their classes.
    """

    size: int
    description: str
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """How many pictures there are."""
        ...

    def draw(self, start: int, count: int) -> Draw:
        """Returns the pictures ``start`` to ``start + count - 1`` of an endless training."""
        ...

    def pictures(self, index: Tensor) -> Tensor:
        """Returns pictures as they are, [B, 3, size, size].

        Raises:
            VistokError: one cannot be read.
        """
        ...

    def augmented(self, draw: Draw) -> Tensor:
        """Returns pictures as a training that sees each often wants them, [B, 3, size, size]."""
        ...

    def captions(self, draw: Draw) -> list[str]:
        """Returns a caption of each picture.

        Raises:
            VistokError: there are none.
        """
        ...

    def labels(self, index: Tensor) -> Tensor:
        """Returns the classes of pictures, int64 [B].

        Raises:
            VistokError: they have none.
        """
        ...

    def held_out(self) -> Source:
        """Returns the pictures that are evaluated on, of which training sees none."""
        ...


def in_passes(start: int, count: int, length: int, seed: int | None) -> Draw:
    """Returns numbers from 0 to ``length`` - 1, pass after pass, each once a pass.

    Args:
        start: place of the first number in the endless sequence.
        count: how many.
        length: numbers of a pass.
        seed: of the order, which is drawn anew for each pass; if None they are in order.
    """
    places = torch.arange(start, start + count)
    index, passes = places % length, places // length
    if seed is not None:
        for each in passes.unique().tolist():
            here = passes == each
            index[here] = _order(length, seed, each)[index[here]]
    return Draw(index, passes)


@functools.lru_cache(maxsize=4)
def _order(length: int, seed: int, number: int) -> Tensor:
    return torch.randperm(length, generator=torch.Generator().manual_seed(derive_seed(seed, number)))
