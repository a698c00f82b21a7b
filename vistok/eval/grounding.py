"""Figures of models that ground texts, on held-out worlds: mask and box overlap, answers by identifier, second looks.

Every model is asked as a user asks it, one picture at a time. Intervals are percentile bootstraps over pictures, since
questions about one picture succeed and fail together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vistok.data.boxes import AGREES, overlap
from vistok.data.images import to_pil
from vistok.data.scenes import render, sample_scenes, shrink
from vistok.data.scenes.details import draw_details
from vistok.data.scenes.referring import draw_phrases, phrase_boxes, phrase_masks
from vistok.data.scenes.splits import HELD_OUT
from vistok.errors import VistokError
from vistok.eval.decoding.estimate import Estimate, ratio_estimate
from vistok.ops.noise import counter_uniform
from vistok.progress import progress
from vistok.projectors.grounding.interface import load_grounder
from vistok.projectors.grounding.masks import mask_iou
from vistok.zoo import cards
from vistok.zoo.registry import card_of_folder, resolve

SIDE = 64  # of pictures for models that see them whole
FINE_SIDE, FINE_SCALE = 128, (0.3, 0.6)  # of pictures for models that look twice, and their objects' radii
PHRASES = 3  # about each picture
Scored = Iterator[tuple[str, float]]  # the name of a figure, and what one question adds to it, in [0, 1]


def evaluate_grounding(name: str | Path, pictures: int, device: Any = "cpu") -> dict[str, Estimate]:
    """Returns the figures of a grounding model.

    Args:
        name: embedded model, folder or hub id.
        pictures: held-out scenes or rooms that are asked about.
        device: where it runs.

    Returns:
        By name: of ``read``, mean mask IoU (``mask_iou``, by kind of phrase too) and how often it rightly points or
        rightly does not; of ``pink``, the share of boxes found (``box_accuracy``, overlap above 0.5) and mean overlap;
        of ``vpt``, right answers with the second look and without; of ``chat3d``, right answers, by kind too.

    Raises:
        VistokError: the name leads nowhere, or to a model that grounds nothing.
    """
    card = card_of_folder(resolve(name))
    family = card.family if card is not None else ""
    if family not in MEASURES:
        known = ", ".join(card.name for card in cards() if card.embedded and card.family in MEASURES)
        raise VistokError(
            f"'{name}' is no grounding model ({family or 'it has no card'}): name one such as {known}, or a folder "
            f"that a recipe of {', '.join(MEASURES)} made."
        )
    scores: dict[str, dict[int, list[float]]] = {}  # by figure and picture
    with progress(f"ground {name}", pictures) as advance:
        for number in range(pictures):
            if number == 0:
                measure = MEASURES[family](name, device)
            for figure, value in measure(number):
                scores.setdefault(figure, {}).setdefault(number, []).append(value)
            advance()
    return {
        figure: ratio_estimate([sum(values) for values in each.values()], [len(values) for values in each.values()])
        for figure, each in sorted(scores.items())
    }


def _read(name: str | Path, device: Any) -> Callable[[int], Scored]:
    model = load_grounder(name, device)

    def measure(number: int) -> Scored:
        scenes = sample_scenes(1, HELD_OUT, number)
        (picture,) = to_pil(render(scenes, SIDE))
        drawn = draw_phrases(scenes, PHRASES)
        masks = phrase_masks(scenes, drawn, SIDE)[0] > 0.5
        for phrase, true in zip(drawn[0], masks, strict=True):
            found = model.ground(picture, phrase.text)
            yield "points_or_not", float(bool(found.regions) == (phrase.group >= 0))
            if phrase.group >= 0:
                said = found.regions[0].mask.cpu() if found.regions else torch.zeros_like(true)
                for figure in ("mask_iou", f"mask_iou_{phrase.kind}"):
                    yield figure, float(mask_iou(said, true))

    return measure


def _pink(name: str | Path, device: Any) -> Callable[[int], Scored]:
    model = load_grounder(name, device)

    def measure(number: int) -> Scored:
        scenes = sample_scenes(1, HELD_OUT, number)
        (picture,) = to_pil(render(scenes, SIDE))
        drawn = draw_phrases(scenes, PHRASES, absent=0)
        for phrase, true in zip(drawn[0], phrase_boxes(scenes, drawn, SIDE)[0], strict=True):
            if phrase.kind == "several":
                continue
            found = model.ground(picture, phrase.text)
            agreed = float(overlap(torch.tensor(found.regions[0].box), true)) if found.regions else 0.0
            yield "box_iou", agreed
            for figure in ("box_accuracy", f"box_accuracy_{phrase.kind}"):
                yield figure, float(agreed > AGREES)

    return measure


def _vpt(name: str | Path, device: Any) -> Callable[[int], Scored]:
    from vistok.eval.answers.ask import ask, load
    from vistok.models.extension import read_extension

    model = load_grounder(name, device)
    below, processor = load(read_extension(name)[0].base, device)

    def measure(number: int) -> Scored:
        scenes = sample_scenes(1, HELD_OUT, number)
        low, high = FINE_SCALE
        scenes = shrink(scenes, low + (high - low) * counter_uniform(HELD_OUT, scenes.index, 77))
        (picture,) = to_pil(render(scenes, FINE_SIDE))
        (detail,) = draw_details(scenes)
        found = model.ground(picture, detail.question)
        once = ask(below, processor, picture, detail.question, max_new_tokens=3)[0].text
        for suffix in ("", f"_{detail.kind}"):
            yield f"exact_match{suffix}", float(found.answer == detail.answer)
            yield f"exact_match_one_look{suffix}", float(once == detail.answer)
        yield "looked_again", float(bool(found.regions))

    return measure


def _chat3d(name: str | Path, device: Any) -> Callable[[int], Scored]:
    from vistok.data.scenes3d import draw_names, draw_questions, point_clouds, sample_rooms
    from vistok.projectors.learned.chat3d import Chat3D

    model = Chat3D.from_pretrained(name).to(device)

    def measure(number: int) -> Scored:
        rooms = sample_rooms(1, HELD_OUT, number)
        names = draw_names(rooms)
        there = rooms.present[0]
        for question in draw_questions(rooms, names, 2 * PHRASES)[0]:
            said = model.answer(point_clouds(rooms)[0, there], names[0, there], question.text)
            for figure in ("exact_match", f"exact_match_{question.kind}"):
                yield figure, float(said == question.answer)

    return measure


MEASURES: dict[str, Callable[[str | Path, Any], Callable[[int], Scored]]] = {
    "read": _read,
    "pink": _pink,
    "vpt": _vpt,
    "chat3d": _chat3d,
}
