"""Held-out scenes and questions that are harder than the world's own: smaller objects, more of them, absent ones.

``small`` are the world's scenes with objects of 0.6 of their radius, ``hard`` those with three objects or more at 0.4.
POPE (arXiv 2305.10355) asks about objects that are there and about as many that are not; which absent ones, its three
splits say: any (``random``), those that the set shows most often (``popular``), and those that are most like what is
there (``adversarial``: a colour and a shape that are there, but not together, come first).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping

import torch

from vistok.data.scenes.language import Group, groups, plural
from vistok.data.scenes.splits import CHUNK, HELD_OUT
from vistok.data.scenes.vqa import KINDS, Question, draw_questions
from vistok.data.scenes.world import COLOURS, SHAPES, Scenes, sample_scenes, shrink
from vistok.errors import unknown_name
from vistok.ops.noise import derive_seed

SMALL, HARD = 0.6, 0.4  # of the radius of objects
MANY = 3  # objects of a hard scene, at least
SPLITS = ("plain", "small", "hard")
POPE_SPLITS = ("random", "popular", "adversarial")
HARDER_KINDS = tuple(kind for kind in KINDS if kind != "size")  # sizes are not told at another scale

_Kind = tuple[str, str]  # colour and shape
_KINDS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)


def split_scenes(split: str, count: int, seed: int = HELD_OUT) -> Scenes:
    """Returns held-out scenes of a split.

    Args:
        split: of ``SPLITS``.
        count: how many.
        seed: of the world.

    Raises:
        VistokError: no split is called so.
    """
    if split == "plain":
        return sample_scenes(count, seed)
    if split == "small":
        return shrink(sample_scenes(count, seed), SMALL)
    if split != "hard":
        raise unknown_name("split of scenes", split, list(SPLITS))
    found: list[torch.Tensor] = []
    start = 0
    while sum(map(len, found)) < count:
        scenes = sample_scenes(CHUNK, seed, start)
        found.append(scenes.index[scenes.present.sum(1) >= MANY])
        start += CHUNK
    scenes = sample_scenes(start, seed)
    return shrink(scenes[torch.cat(found)[:count]], HARD)


def split_questions(scenes: Scenes, split: str, count: int, kinds: Mapping[str, float] | None) -> list[list[Question]]:
    """Returns questions about each scene of a split: the world's own, or also about place and kinds of object.

    Args:
        scenes: of ``split_scenes``.
        split: which.
        count: questions of each.
        kinds: see ``draw_questions``; what suits the split if None.
    """
    if kinds is None and split != "plain":
        kinds = dict.fromkeys(HARDER_KINDS, 1.0)
    return draw_questions(scenes, count, kinds=kinds)


def pope_questions(scenes: Scenes, split: str) -> list[list[Question]]:
    """Returns questions about the kinds of object in each scene, and about as many that are absent.

    Args:
        scenes: B scenes.
        split: of ``POPE_SPLITS``.

    Raises:
        VistokError: no split is called so.
    """
    if split not in POPE_SPLITS:
        raise unknown_name("split of POPE", split, list(POPE_SPLITS))
    everything = groups(scenes)
    often = Counter((g.colour, g.shape) for scene in everything for g in scene)
    out = []
    for scene, index in zip(everything, scenes.index.tolist(), strict=True):
        present = list(dict.fromkeys((g.colour, g.shape) for g in scene))
        absent = [kind for kind in _KINDS if kind not in present]
        random.Random(derive_seed(index, 1)).shuffle(absent)
        if split == "popular":
            absent.sort(key=lambda kind: -often[kind])
        elif split == "adversarial":
            absent.sort(key=lambda kind: -_likeness(kind, scene))
        asked = [(kind, "yes") for kind in present] + [(kind, "no") for kind in absent[: len(present)]]
        row = [Question(f"are there {colour} {plural(shape)}?", said, "object") for (colour, shape), said in asked]
        out.append(row)
    return out


def _likeness(kind: _Kind, scene: list[Group]) -> int:
    """2 where colour and shape of an absent kind are both there, 1 for one of them, else 0."""
    return any(g.colour == kind[0] for g in scene) + any(g.shape == kind[1] for g in scene)
