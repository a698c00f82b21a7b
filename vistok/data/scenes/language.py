"""What is said about a scene: captions, the vocabulary they come from, and questions with answers.

A caption names every object of its scene, so that a picture can be checked against it. Which details it gives (size,
colour, background, a spatial relation) is drawn anew for each ``variant``; a relation is only stated where it clearly
holds.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vistok.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, SIZES, Scenes
from vistok.ops.noise import derive_seed

NUMBERS = ("zero", "one", "two", "three", "four")
OPENINGS = ("", "a photo of ", "a picture of ", "an image of ", "there is ", "a drawing of ")
RELATIONS = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


@dataclass(frozen=True)
class Group:
    """Objects of one scene that are equal in shape, colour and size.

    Attributes:
        shape, colour, size: names from SHAPES, COLOURS, SIZES.
        count: how many.
        centre: mean (x, y) of their centres, fractions of the side.
    """

    shape: str
    colour: str
    size: str
    count: int
    centre: tuple[float, float]


def groups(scenes: Scenes) -> list[list[Group]]:
    """Returns the groups of every scene, in slot order."""
    columns = (scenes.group, scenes.shape, scenes.colour, scenes.size, scenes.centre)
    out = []
    for group, shape, colour, size, centre in zip(*(c.tolist() for c in columns), strict=True):
        members: dict[int, list[int]] = {}
        for slot, g in enumerate(group):
            if g >= 0:
                members.setdefault(g, []).append(slot)
        out.append(
            [
                Group(
                    SHAPES[shape[slots[0]]],
                    COLOURS[colour[slots[0]]],
                    SIZES[size[slots[0]]],
                    len(slots),
                    (
                        sum(centre[s][0] for s in slots) / len(slots),
                        sum(centre[s][1] for s in slots) / len(slots),
                    ),
                )
                for slots in members.values()
            ]
        )
    return out


def relation(a: tuple[float, float], b: tuple[float, float], margin: float = 0.1) -> str | None:
    """Returns where point ``a`` lies as seen from ``b``: the dominant axis decides.

    Args:
        a, b: (x, y), y downwards, fractions of the side.
        margin: the dominant offset must exceed the other one by this much, else the relation is unclear.

    Returns:
        ``left``, ``right``, ``above``, ``below`` or None.
    """
    dx, dy = a[0] - b[0], a[1] - b[1]
    if abs(abs(dx) - abs(dy)) < margin:
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def plural(shape: str) -> str:
    """Returns the plural of a shape's name."""
    return shape + ("es" if shape.endswith(("s", "x")) else "s")


def phrase(group: Group, size: bool, colour: bool) -> str:
    """Returns a noun phrase, e.g. ``two small red circles``."""
    words = ([group.size] if size else []) + ([group.colour] if colour else [])
    words.append(group.shape if group.count == 1 else plural(group.shape))
    if group.count > 1:
        return " ".join([NUMBERS[group.count], *words])
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


@dataclass(frozen=True)
class Statement:
    """What a caption says.

    Attributes:
        groups: in the order in which they are named.
        with_size, with_colour: whether sizes and colours are told.
        where: relation of the first group to the second, None if none is told.
        background: name from BACKGROUNDS, None if it is not told.
        opening: one of OPENINGS.
        form: which of the relation's wordings.
    """

    groups: tuple[Group, ...]
    with_size: bool
    with_colour: bool
    where: str | None
    background: str | None
    opening: str
    form: int

    @property
    def text(self) -> str:
        """The caption."""
        named = [phrase(g, self.with_size, self.with_colour) for g in self.groups]
        if self.where is not None:
            body = f"{named[0]} {RELATIONS[self.where][self.form]} {named[1]}"
        else:
            body = " and ".join([", ".join(named[:-1]), named[-1]]) if len(named) > 1 else named[0]
        ending = "" if self.background is None else f" on a {self.background} background"
        return self.opening + body + ending


def statement(scene: list[Group], background: str, rng: random.Random) -> Statement:
    """Returns one true statement about a scene.

    Args:
        scene: its groups.
        background: name from BACKGROUNDS.
        rng: draws the form.
    """
    order = list(scene)
    rng.shuffle(order)
    where = None
    if len(order) == 2 and rng.random() < 0.7:
        where = relation(order[0].centre, order[1].centre)
    return Statement(
        groups=tuple(order),
        with_size=rng.random() < 0.25,
        with_colour=rng.random() < 0.6,
        where=where,
        background=background if rng.random() < 0.2 else None,
        opening=rng.choice(OPENINGS),
        form=rng.randrange(2),
    )


def statements(scenes: Scenes, variant: int | Sequence[int] = 0) -> list[Statement]:
    """Returns a statement about every scene.

    Args:
        scenes: B scenes.
        variant: another one gives another wording of the same scenes; one for all, or one for each.
    """
    variants = [variant] * len(scenes) if isinstance(variant, int) else variant
    columns = (groups(scenes), scenes.background.tolist(), scenes.index.tolist(), variants)
    return [
        statement(scene, BACKGROUNDS[background], random.Random(derive_seed(index, wording)))
        for scene, background, index, wording in zip(*columns, strict=True)
    ]


def captions(scenes: Scenes, variant: int | Sequence[int] = 0) -> list[str]:
    """Returns the texts of ``statements``."""
    return [s.text for s in statements(scenes, variant)]


def vocabulary() -> list[str]:
    """Returns every word that a caption can hold, sorted; punctuation included."""
    words = {"a", "an", ",", "and", "on", "background", *NUMBERS[2:]}
    words |= {*SHAPES, *(plural(s) for s in SHAPES), *COLOURS, *SIZES, *BACKGROUNDS}
    for text in OPENINGS + tuple(form for forms in RELATIONS.values() for form in forms):
        words |= set(text.split())
    return sorted(words)


def questions(scene: list[Group], background: str) -> list[dict[str, str]]:
    """Returns all questions about a scene whose answer is certain, each ``{"question", "answer", "type"}``.

    Types: ``count``, ``colour``, ``shape``, ``exists``, ``relation``, ``size``, ``background``.
    """
    out: list[dict[str, str]] = []

    def ask(kind: str, question: str, answer: str) -> None:
        out.append({"question": question, "answer": answer, "type": kind})

    ask("count", "how many objects are there?", NUMBERS[sum(g.count for g in scene)])
    ask("background", "what is the background?", background)
    by_shape = {s: [g for g in scene if g.shape == s] for s in SHAPES}
    by_colour = {c: [g for g in scene if g.colour == c] for c in COLOURS}
    for shape, found in by_shape.items():
        ask("count", f"how many {plural(shape)} are there?", NUMBERS[sum(g.count for g in found)])
        ask("exists", f"is there a {shape}?", "yes" if found else "no")
        if len(found) == 1 and found[0].count == 1:
            ask("colour", f"what color is the {shape}?", found[0].colour)
            ask("size", f"what size is the {shape}?", found[0].size)
    for colour, found in by_colour.items():
        ask("count", f"how many {colour} objects are there?", NUMBERS[sum(g.count for g in found)])
        if len(found) == 1 and found[0].count == 1:
            ask("shape", f"what shape is the {colour} object?", found[0].shape)
    for a in scene:
        for b in scene:
            if a is b or a.count > 1 or b.count > 1 or (where := relation(a.centre, b.centre)) is None:
                continue
            for name, forms in RELATIONS.items():
                ask(
                    "relation",
                    f"is the {a.shape} {forms[0]} the {b.shape}?",
                    "yes" if name == where else "no",
                )
    return out
