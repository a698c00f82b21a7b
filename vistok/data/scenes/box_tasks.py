"""Pink's referring tasks (arXiv 2310.00582, section on data) made from the boxes of scenes.

Each is a question and its answer in which boxes are text; all are certain. Templates are one a task here, in the words
of the embedded models; the published ones are dozens of sentences.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from vistok.data.boxes import box_text
from vistok.data.scenes.language import NUMBERS, groups, plural, relation
from vistok.data.scenes.referring import Phrase, phrase_boxes, phrases
from vistok.data.scenes.render import boxes
from vistok.data.scenes.world import COLOURS, SHAPES, SIZES, Scenes
from vistok.errors import VistokError
from vistok.ops.noise import derive_seed

TASKS = ("grounding", "region_caption", "relation", "coarse_location", "detection", "counting")
NOTHING = "no"
HALVES = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}
FAR = 0.06  # least distance of a centre from the middle line, in sides of the picture


class BoxTask(NamedTuple):
    """A question, its answer, and which of ``TASKS`` it is."""

    question: str
    answer: str
    task: str


def draw_box_tasks(
    scenes: Scenes, count: int, tasks: Sequence[str] = TASKS, decimals: int = 3, variant: int = 0
) -> list[list[BoxTask]]:
    """Returns tasks about each scene, the kinds evenly; a caption of a box where there is none of a kind.

    Args:
        scenes: B scenes.
        count: of each.
        tasks: kinds, of ``TASKS``.
        decimals: of coordinates.
        variant: another one draws anew.

    Raises:
        VistokError: a kind is unknown.
    """
    if unknown := [task for task in tasks if task not in TASKS]:
        raise VistokError(f"unknown referring task '{unknown[0]}': choose of {', '.join(TASKS)}.")
    out = []
    for scene, index in zip(_rooms(scenes, decimals), scenes.index.tolist(), strict=True):
        rng = random.Random(derive_seed(index, variant, 11))
        chosen = [rng.choice(list(tasks)) for _ in range(count)]
        out.append([_MAKERS[task](scene, rng) or _region_caption(scene, rng) for task in chosen])
    return out


class _Object(NamedTuple):
    """One object: its words, box as text, area of the box, and centre."""

    size: str
    colour: str
    shape: str
    box: str
    area: float
    centre: tuple[float, float]


class _Scene(NamedTuple):
    objects: list[_Object]  # by ascending area, as answers list them
    named: list[tuple[Phrase, str]]  # phrases of single objects, and the boxes they mean


def _rooms(scenes: Scenes, decimals: int) -> list[_Scene]:
    """Returns what the makers of tasks need of each scene."""
    single = [[p for p in phrases(scene) if p.kind != "several"] for scene in groups(scenes)]
    most = max(1, *map(len, single))
    padded = [row + [Phrase("", -1, "absent")] * (most - len(row)) for row in single]
    around = phrase_boxes(scenes, padded, 1).tolist()
    every = boxes(scenes, 1).clamp(0, 1).tolist()
    out = []
    for b, row in enumerate(single):
        objects = []
        for slot in scenes.present[b].nonzero()[:, 0].tolist():
            x0, y0, x1, y1 = every[b][slot]
            kind = [names[int(column[b, slot])] for names, column in _names(scenes)]
            where = box_text((x0, y0, x1, y1), (1, 1), decimals)
            objects.append(_Object(*kind, where, (x1 - x0) * (y1 - y0), tuple(scenes.centre[b, slot].tolist())))
        named = [(phrase, box_text(around[b][k], (1, 1), decimals)) for k, phrase in enumerate(row)]
        out.append(_Scene(sorted(objects, key=lambda entry: entry.area), named))
    return out


def _names(scenes: Scenes):
    return ((SIZES, scenes.size), (COLOURS, scenes.colour), (SHAPES, scenes.shape))


def _grounding(scene: _Scene, rng: random.Random) -> BoxTask | None:
    if not scene.named:
        return None
    phrase, box = rng.choice(scene.named)
    return BoxTask(f"where is {phrase.text}?", box, "grounding")


def _region_caption(scene: _Scene, rng: random.Random) -> BoxTask:
    chosen = rng.choice(scene.objects)
    return BoxTask(f"what is {chosen.box}?", f"the {chosen.size} {chosen.colour} {chosen.shape}", "region_caption")


def _relation(scene: _Scene, rng: random.Random) -> BoxTask | None:
    if len(scene.objects) < 2:
        return None
    first, second = rng.sample(scene.objects, 2)
    where = relation(first.centre, second.centre)
    return None if where is None else BoxTask(f"where is {first.box} of {second.box}?", where, "relation")


def _coarse_location(scene: _Scene, rng: random.Random) -> BoxTask | None:
    name, (axis, sign) = rng.choice(list(HALVES.items()))
    offsets = [(entry.centre[axis] - 0.5) * sign for entry in scene.objects]
    inside = [entry for entry, offset in zip(scene.objects, offsets, strict=True) if offset > 0]
    if any(abs(offset) < FAR for offset in offsets) or len(inside) > 2:
        return None
    said = " ".join(f"{entry.colour} {entry.shape}" for entry in inside)
    return BoxTask(f"what is {name}?", said or NOTHING, "coarse_location")


def _detection(scene: _Scene, rng: random.Random) -> BoxTask:
    chosen = rng.choice(scene.objects)
    found = [entry.box for entry in scene.objects if entry.shape == chosen.shape]
    return BoxTask(f"where are {plural(chosen.shape)}?", " ".join(found), "detection")


def _counting(scene: _Scene, rng: random.Random) -> BoxTask:
    chosen = rng.choice(scene.objects)
    shape = chosen.shape if rng.random() < 0.8 else rng.choice(SHAPES)
    number = sum(entry.shape == shape for entry in scene.objects)
    asked = f"how many {plural(shape)} are there?"
    if shape == chosen.shape and rng.random() < 0.5:  # the same by example
        asked = f"how many are {chosen.box}?"
    return BoxTask(asked, NUMBERS[number], "counting")


_MAKERS = {
    "grounding": _grounding,
    "region_caption": _region_caption,
    "relation": _relation,
    "coarse_location": _coarse_location,
    "detection": _detection,
    "counting": _counting,
}
