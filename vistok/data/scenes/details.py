"""Questions about single small objects, and where one must look to answer them."""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from vistok.data.scenes.render import boxes
from vistok.data.scenes.world import COLOURS, SHAPES, Scenes
from vistok.ops.noise import derive_seed


class Detail(NamedTuple):
    """A question about one object, its one-word answer, its kind (``colour`` or ``shape``), and the object's slot."""

    question: str
    answer: str
    kind: str
    slot: int


def draw_details(scenes: Scenes, variant: int = 0) -> list[Detail]:
    """Returns one question about each scene: the colour of an object told by its shape, or the reverse.

    Where no object is alone in its shape or its colour, the question is about the first one's colour, which all objects
    of its shape share if they are of one group.

    Args:
        scenes: B scenes.
        variant: another one draws anew.
    """
    out = []
    for b, index in enumerate(scenes.index.tolist()):
        rng = random.Random(derive_seed(index, variant, 13))
        there = scenes.present[b].nonzero()[:, 0].tolist()
        shape = {slot: SHAPES[int(scenes.shape[b, slot])] for slot in there}
        colour = {slot: COLOURS[int(scenes.colour[b, slot])] for slot in there}
        found = []
        for slot in there:
            if list(shape.values()).count(shape[slot]) == 1:
                found.append(Detail(f"what color is the {shape[slot]}?", colour[slot], "colour", slot))
            if list(colour.values()).count(colour[slot]) == 1:
                found.append(Detail(f"what shape is the {colour[slot]} object?", shape[slot], "shape", slot))
        first = there[0]
        kinds = sorted({detail.kind for detail in found})
        if kinds:
            kind = rng.choice(kinds)
            out.append(rng.choice([detail for detail in found if detail.kind == kind]))
        else:
            out.append(Detail(f"what color is the {shape[first]}?", colour[first], "colour", first))
    return out


def detail_boxes(scenes: Scenes, details: list[Detail], side: int) -> Tensor:
    """Returns boxes of the objects that are asked about in pixels of a picture of that side, float32 [B, 4]."""
    rows = torch.arange(len(scenes))
    return boxes(scenes, side)[rows, torch.tensor([detail.slot for detail in details])].clamp(0, side)


def asked_about(scenes: Scenes, details: list[Detail]) -> Tensor:
    """Returns which objects each question is about, bool [B, 4]: several where none is alone in what it tells."""
    slot = torch.tensor([[detail.slot] for detail in details])
    by_colour = torch.tensor([[detail.kind == "shape"] for detail in details])
    same = [column == column.gather(1, slot) for column in (scenes.shape, scenes.colour)]
    return scenes.present & torch.where(by_colour, same[1], same[0])
