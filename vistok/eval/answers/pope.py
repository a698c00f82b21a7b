"""POPE (arXiv 2305.10355) on held-out scenes: does a model see objects that are not there?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vistok.data.images import to_pil
from vistok.data.scenes import render
from vistok.data.scenes.vqa_splits import pope_questions, split_scenes
from vistok.eval.answers.prompts import model_inputs
from vistok.eval.answers.scorers import parse_pope, pope_score
from vistok.eval.decoding.estimate import Estimate, paired_estimate


@dataclass(frozen=True)
class PopePoint:
    """The figures of one split of POPE.

    Attributes:
        split: which.
        questions: how many.
        accuracy, precision, recall, f1, yes_ratio: over all questions.
        interval: of F1, 95 %, by the bootstrap over pictures.
    """

    split: str
    questions: int
    accuracy: float
    precision: float
    recall: float
    f1: float
    yes_ratio: float
    interval: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def pope(
    model: Any,
    processor: Any,
    side: int,
    splits: Sequence[str],
    scenes: int = 128,
    scene_split: str = "hard",
    batch_size: int = 64,
) -> list[PopePoint]:
    """Asks a model about present and absent objects, and scores its answers.

    Args:
        model, processor: see ``vistok.eval.answers.ask.load``.
        side: of the pictures in pixels.
        splits: of POPE.
        scenes: how many pictures.
        scene_split: which, see ``split_scenes``.
        batch_size: prompts at a time.
    """
    drawn = split_scenes(scene_split, scenes)
    pictures = to_pil(render(drawn, side))
    points = []
    for split in splits:
        rows = pope_questions(drawn, split)
        asked = [(pictures[i], question, i) for i, row in enumerate(rows) for question in row]
        said: list[str] = []
        for start in range(0, len(asked), batch_size):
            part = asked[start : start + batch_size]
            inputs = model_inputs(model, processor, [p for p, _, _ in part], [q.text for _, q, _ in part])
            tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)
            new = tokens[:, inputs["input_ids"].shape[1] :]
            said += [parse_pope(text) for text in processor.batch_decode(new, skip_special_tokens=True)]
        truths = [question.answer for _, question, _ in asked]
        score = pope_score(said, truths)
        owners = np.array([i for _, _, i in asked])
        estimate = _f1(np.array(said), np.array(truths), owners, scenes)
        points.append(PopePoint(split, len(asked), *score, interval=(estimate.low, estimate.high)))
    return points


def _f1(said: np.ndarray, truths: np.ndarray, owners: np.ndarray, pictures: int) -> Estimate:
    """F1 with its interval, resampling pictures."""
    yes, true = said == "yes", truths == "yes"
    hits, spoken, real = (np.bincount(owners, part, pictures) for part in (yes & true, yes, true))
    return paired_estimate(lambda h, s, r: 2 * h / np.maximum(s + r, 1e-9), hits, spoken, real)
