"""Summary of GenEval records: accuracy of pictures and prompts, by task, with intervals.

The overall score is the mean of the task accuracies, not that of the pictures. Intervals are Wilson's, on the number of
pictures divided by the design effect of their clustering: the four pictures of a prompt succeed and fail together.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vistok.errors import VistokError
from vistok.eval.geneval.metadata import TASKS


@dataclass(frozen=True)
class TaskScore:
    """Accuracy over the pictures of one task, with a 95 % interval."""

    accuracy: float
    low: float
    high: float
    images: int


@dataclass(frozen=True)
class GenEvalSummary:
    """What GenEval reports.

    Args:
        overall: mean of the task accuracies.
        tasks: by task, in the published order; absent tasks are left out.
        images: number of pictures.
        prompts: number of different prompts.
        image_accuracy: share of right pictures.
        prompt_accuracy: share of prompts with at least one right picture.
    """

    overall: float
    tasks: dict[str, TaskScore]
    images: int
    prompts: int
    image_accuracy: float
    prompt_accuracy: float

    def to_json(self) -> dict:
        return asdict(self)


def wilson_interval(share: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """Returns Wilson's interval of a share of ``n`` trials."""
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def _task_score(prompts: Sequence[list[bool]]) -> TaskScore:
    images = sum(map(len, prompts))
    accuracy = sum(map(sum, prompts)) / images
    independent = images * accuracy * (1 - accuracy)
    clustered = sum((sum(p) - len(p) * accuracy) ** 2 for p in prompts)
    design_effect = max(clustered / independent, 1.0) if independent else 1.0
    low, high = wilson_interval(accuracy, images / design_effect)
    return TaskScore(accuracy, low, high, images)


def summarise(records: Sequence[dict]) -> GenEvalSummary:
    """Returns the summary of the records of a set.

    Args:
        records: each with ``tag``, ``correct`` and ``metadata`` (its JSON text, which tells prompts apart).
    """
    by_task: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        by_task[record["tag"]][record["metadata"]].append(bool(record["correct"]))
    tasks = {task: _task_score(list(by_task[task].values())) for task in TASKS if task in by_task}
    prompts = [pictures for task in by_task.values() for pictures in task.values()]
    return GenEvalSummary(
        overall=sum(task.accuracy for task in tasks.values()) / len(tasks),
        tasks=tasks,
        images=len(records),
        prompts=len(prompts),
        image_accuracy=sum(map(sum, prompts)) / len(records),
        prompt_accuracy=sum(map(any, prompts)) / len(prompts),
    )


def read_summary(path: str | Path) -> GenEvalSummary:
    """Returns the summary in a ``summary.json``.

    Raises:
        VistokError: if the file is none.
    """
    try:
        record = json.loads(Path(path).read_text("utf-8"))
        tasks = {task: TaskScore(**score) for task, score in record["tasks"].items()}
        figures = {key: record[key] for key in ("overall", "images", "prompts", "image_accuracy", "prompt_accuracy")}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise VistokError(f"'{path}' is no summary.json of a GenEval report.") from error
    return GenEvalSummary(tasks=tasks, **figures)
