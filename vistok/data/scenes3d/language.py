"""Questions about rooms, which name solids by identifier, and their words.

An identifier is a word (``<OBJ003>``) that a room's solid gets by chance: the language model must look it up, and
cannot learn that some number is red. A prompt is ``user: {objects} {question} assistant:``; an answer is one word or
some identifiers in ascending order.
"""

from __future__ import annotations

import random
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from vistok.data.scenes.language import plural
from vistok.data.scenes.vqa import ASSISTANT, BEGIN, END, IGNORE, PAD, UNKNOWN, USER
from vistok.data.scenes.world import COLOURS, SIZES
from vistok.data.scenes3d.world import MAX_OBJECTS, SHAPES, Rooms
from vistok.ops.noise import derive_seed

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
NOTHING = "nothing"
RELATIONS = {"left of": (0, -1), "right of": (0, 1), "in front of": (1, -1), "behind": (1, 1)}  # axis and direction
MARGIN = 0.1  # by which two solids must differ along an axis to be told apart
LISTED = 4  # identifiers of the longest answer that is asked for
SLOT = 10  # tokens of the longest question with "assistant:" and its answer


class Question(NamedTuple):
    """A question about a room, its answer, and its kind."""

    text: str
    answer: str
    kind: str


def named(number: int) -> str:
    """The identifier of that number."""
    return f"<OBJ{number:03d}>"


@cache
def vocabulary() -> list[str]:
    """Every token: the special ones, the identifiers, then all words, sorted."""
    words = {"what", "which", "color", "shape", "size", "is", "are", "the", "object", "objects", "nearest", "to", "on"}
    words |= {"how", "many", "there", "?", "yes", "no", NOTHING, *NUMBERS, *COLOURS, *SIZES}
    words |= {*SHAPES, *map(plural, SHAPES)} | {word for relation in RELATIONS for word in relation.split()}
    return [PAD, BEGIN, END, UNKNOWN, USER, ASSISTANT, *map(named, range(MAX_OBJECTS)), *sorted(words)]


@cache
def token_ids() -> dict[str, int]:
    """Number of each token."""
    return {word: i for i, word in enumerate(vocabulary())}


def draw_names(rooms: Rooms, variant: int = 0) -> Tensor:
    """Identifiers of each room's solids, drawn anew for every room and variant, int64 [B, 8]."""
    rows = []
    for index in rooms.index.tolist():
        numbers = list(range(MAX_OBJECTS))
        random.Random(derive_seed(rooms.seed, index, variant, 1)).shuffle(numbers)
        rows.append(numbers)
    return torch.tensor(rows)


def ask(rooms: Rooms, names: Tensor) -> list[list[Question]]:
    """Every question about each room whose answer is certain.

    Kinds: ``colour``, ``shape``, ``size``, ``find``, ``count``, ``list`` (attributes); ``relation``, ``nearest``,
    ``on`` (places).

    Args:
        rooms: B rooms.
        names: their identifiers, see ``draw_names``.
    """
    columns = (rooms.present, rooms.shape, rooms.colour, rooms.size, rooms.centre, rooms.support, names)
    return [_ask(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _ask(present, shape, colour, size, centre, support, names) -> list[Question]:
    there = [slot for slot, there in enumerate(present) if there]
    name = {slot: named(names[slot]) for slot in there}
    kind = {slot: (SIZES[size[slot]], COLOURS[colour[slot]], SHAPES[shape[slot]]) for slot in there}
    out = []
    for slot in there:
        for what, word in zip(("size", "color", "shape"), kind[slot], strict=True):
            out.append(Question(f"what {what} is {name[slot]} ?", word, "colour" if what == "color" else what))
        if list(kind.values()).count(kind[slot]) == 1:
            out.append(Question(f"which object is the {' '.join(kind[slot])} ?", name[slot], "find"))
        on = [other for other in there if support[other] == slot]
        out.append(Question(f"what is on {name[slot]} ?", name[on[0]] if on else NOTHING, "on"))
        out.extend(_nearest(slot, there, centre, name))
        for other in there:
            out.extend(_relations(slot, other, centre, name))
    for axis, words in ((1, COLOURS), (2, SHAPES)):
        for word in words:
            of_it = sorted(name[slot] for slot in there if kind[slot][axis] == word)
            many = plural(word) if axis == 2 else f"{word} objects"
            out.append(Question(f"how many {many} are there ?", NUMBERS[len(of_it)], "count"))
            if len(of_it) <= LISTED:
                said = f"which objects are {plural(word) if axis == 2 else word} ?"
                out.append(Question(said, " ".join(of_it) or NOTHING, "list"))
    return out


def _nearest(slot: int, there: list[int], centre, name) -> list[Question]:
    ranked = sorted((_distance(centre[slot], centre[other]), other) for other in there if other != slot)
    if len(ranked) < 2 or ranked[1][0] - ranked[0][0] < MARGIN / 2:
        return []
    return [Question(f"which object is nearest to {name[slot]} ?", name[ranked[0][1]], "nearest")]


def _distance(a, b) -> float:
    return sum((p - q) ** 2 for p, q in zip(a, b, strict=True)) ** 0.5


def _relations(slot: int, other: int, centre, name) -> list[Question]:
    if slot == other:
        return []
    out = []
    for words, (axis, direction) in RELATIONS.items():
        offset = (centre[slot][axis] - centre[other][axis]) * direction
        if abs(offset) >= MARGIN:
            said = f"is {name[slot]} {words} {name[other]} ?"
            out.append(Question(said, "yes" if offset > 0 else "no", "relation"))
    return out


def draw_questions(rooms: Rooms, names: Tensor, count: int, variant: int = 0) -> list[list[Question]]:
    """Different questions about each room: a kind is drawn, then one of its answers' forms, then a question.

    Args:
        rooms, names: see ``ask``.
        count: questions of each.
        variant: another one draws anew.
    """
    drawn = []
    for index, everything in zip(rooms.index.tolist(), ask(rooms, names), strict=True):
        rng = random.Random(derive_seed(rooms.seed, index, variant, 2))
        left: dict[str, dict[str, list[Question]]] = {}
        for question in everything:  # identifiers count as one answer, so that "nothing" is no safe guess
            form = "identifier" if question.answer.startswith("<") else question.answer
            left.setdefault(question.kind, {}).setdefault(form, []).append(question)
        row = []
        while len(row) < count:
            kind = rng.choice(list(left))
            form = rng.choice(list(left[kind]))
            questions = left[kind][form]
            row.append(questions.pop(rng.randrange(len(questions))))
            if not questions:
                del left[kind][form]
            if not left[kind]:
                del left[kind]
        drawn.append(row)
    return drawn


@cache
def _slot(text: str, answer: str) -> tuple[list[int], list[int]]:
    ids = token_ids()
    question, said = [ids[word] for word in text.split()], [ids[word] for word in answer.split()]
    tokens = [*question, ids[ASSISTANT], *said]
    targets = [IGNORE] * len(question) + said + [ids[END]]
    padding = SLOT - len(tokens)
    return tokens + [ids[PAD]] * padding, targets + [IGNORE] * padding


def question_tokens(drawn: list[list[Question]]) -> tuple[Tensor, Tensor]:
    """Tokens and next-token targets of the questions of each room, int64 [B, K, SLOT] twice."""
    slots = [[_slot(question.text, question.answer) for question in row] for row in drawn]
    return tuple(torch.tensor([[slot[i] for slot in row] for row in slots]) for i in range(2))
