"""Phrases that refer to objects of scenes, for models that show where something is.

A phrase names one group of equal objects and no other: by shape, colour or size as far as that is certain, or by where
it lies as seen from another object. Phrases about kinds that the scene does not hold are drawn too: whoever answers
must be able to say that nothing is there.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from torch import Tensor

from vistok.data.scenes.language import NUMBERS, RELATIONS, Group, groups, plural, relation
from vistok.data.scenes.render import boxes, render_masks
from vistok.data.scenes.world import COLOURS, SHAPES, SIZES, Scenes
from vistok.ops.noise import derive_seed

KINDS = ("attributes", "relation", "several", "absent")


class Phrase(NamedTuple):
    """A phrase such as ``the red circle``, the number of the group that it means (-1: none), and its kind."""

    text: str
    group: int
    kind: str


def phrases(scene: list[Group]) -> list[Phrase]:
    """Returns every phrase about a scene's groups whose meaning is certain, but those about absent kinds."""
    out = []
    for number, group in enumerate(scene):
        shown = group.shape if group.count == 1 else plural(group.shape)
        count = [] if group.count == 1 else [NUMBERS[group.count]]
        kind = "attributes" if group.count == 1 else "several"
        for size in (False, True):
            for colour in (False, True):
                words = [*count, *([group.size] * size), *([group.colour] * colour), shown]
                if _unique(scene, group, size, colour, shape=True):
                    out.append(Phrase(" ".join(["the", *words]), number, kind))
        if group.count == 1 and _unique(scene, group, size=False, colour=True, shape=False):
            out.append(Phrase(f"the {group.colour} object", number, kind))
        out.extend(_related(scene, number, group))
    return out


def _unique(scene: list[Group], group: Group, size: bool, colour: bool, shape: bool) -> bool:
    fits = [
        other
        for other in scene
        if (not size or other.size == group.size)
        and (not colour or other.colour == group.colour)
        and (not shape or other.shape == group.shape)
    ]
    return len(fits) == 1


def _related(scene: list[Group], number: int, group: Group) -> list[Phrase]:
    if group.count > 1:
        return []
    out = []
    for other in scene:
        where = None if other is group or other.count > 1 else relation(group.centre, other.centre)
        rivals = [g for g in scene if g is not other and g.count == 1 and relation(g.centre, other.centre) == where]
        if where is not None and len(rivals) == 1 and all(g.count == 1 for g in scene):
            out.append(Phrase(f"the object {RELATIONS[where][0]} the {other.shape}", number, "relation"))
    return out


def draw_phrases(scenes: Scenes, count: int, absent: float = 0.15, variant: int = 0) -> list[list[Phrase]]:
    """Returns phrases about each scene; a group is drawn, then a kind of phrase, then a phrase. They may repeat.

    Args:
        scenes: B scenes.
        count: phrases of each.
        absent: share of phrases about what is not there.
        variant: another one draws anew.
    """
    out = []
    for scene, index in zip(groups(scenes), scenes.index.tolist(), strict=True):
        rng = random.Random(derive_seed(index, variant, 7))
        by_group: dict[int, dict[str, list[Phrase]]] = {}
        for phrase in phrases(scene):
            by_group.setdefault(phrase.group, {}).setdefault(phrase.kind, []).append(phrase)
        row = []
        for _ in range(count):
            if rng.random() < absent:
                row.append(_absent(scene, rng))
                continue
            kinds = by_group[rng.choice(list(by_group))]
            row.append(rng.choice(kinds[rng.choice(list(kinds))]))
        out.append(row)
    return out


def _absent(scene: list[Group], rng: random.Random) -> Phrase:
    """Returns a kind that no group has: near misses, which share the colour or the shape of one, half of the time."""
    present = {(group.colour, group.shape) for group in scene}
    seen = rng.choice(scene)
    while True:
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        near = rng.random()
        colour, shape = (seen.colour if near < 0.25 else colour), (seen.shape if 0.25 <= near < 0.5 else shape)
        if (colour, shape) not in present:
            size = f"{rng.choice(SIZES)} " if rng.random() < 0.25 else ""
            return Phrase(f"the {size}{colour} {shape}", -1, "absent")


def _members(scenes: Scenes, drawn: list[list[Phrase]]) -> Tensor:
    """Returns which slots each phrase means, bool [B, K, 4]; none where it means nothing."""
    wanted = torch.tensor([[phrase.group for phrase in row] for row in drawn])
    return (scenes.group[:, None] == wanted[..., None]) & scenes.present[:, None]


def phrase_masks(scenes: Scenes, drawn: list[list[Phrase]], side: int) -> Tensor:
    """Returns what each phrase means as coverage of pixels, float32 [B, K, side, side] in [0, 1]."""
    members = _members(scenes, drawn).float()
    return torch.einsum("bko,bohw->bkhw", members, render_masks(scenes, side)).clamp(max=1)


def phrase_boxes(scenes: Scenes, drawn: list[list[Phrase]], side: int) -> Tensor:
    """Returns the tight box around what each phrase means in pixels, float32 [B, K, 4]; zero where it means nothing.

    Boxes end at the border of the picture.
    """
    members = _members(scenes, drawn)[..., None]
    around = boxes(scenes, side).clamp(0, side)[:, None]
    low = around[..., :2].masked_fill(~members, side).amin(2)
    high = around[..., 2:].masked_fill(~members, 0).amax(2)
    return torch.cat([low, high], -1) * members.any(2)
