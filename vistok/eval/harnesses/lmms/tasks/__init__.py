"""Tasks for lmms-eval: where its plugin hook looks for them, and a writer of one that needs no network.

Questions about scenes are written as ``vistok eval vqa --questions`` reads them, so that both can be asked the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

TASK = "vistok_scenes"
_UTILS = "from vistok.eval.harnesses.lmms.tasks import picture, question, score  # noqa: F401\n"
_YAML = """task: {task}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {questions}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.picture
doc_to_text: !function utils.question
doc_to_target: answer
process_results: !function utils.score
generation_kwargs:
  max_new_tokens: 2
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
"""


def write_scenes_task(folder: str | Path, side: int, scenes: int = 64, per_scene: int = 3) -> Path:
    """Write the task ``vistok_scenes`` for ``--include_path``.

    Args:
        folder: gets the task, its questions and its pictures.
        side: of the pictures in pixels.
        scenes: how many held-out scenes.
        per_scene: questions about each.

    Returns:
        ``questions.jsonl`` within the folder.
    """
    from vistok.eval.answers.questions import scene_questions

    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    lines, saved = [], {}
    for asked in scene_questions(side, scenes, per_scene):
        name = saved.setdefault(id(asked.picture), f"{len(saved):05d}.png")
        asked.picture.save(folder / name)
        lines.append(
            json.dumps({"image": str(folder / name), "question": asked.question, "answer": asked.answers[0]}) + "\n"
        )
    questions = folder / "questions.jsonl"
    questions.write_text("".join(lines), encoding="utf-8")
    (folder / "utils.py").write_text(_UTILS, encoding="utf-8")
    (folder / f"{TASK}.yaml").write_text(_YAML.format(task=TASK, questions=questions), encoding="utf-8")
    return questions


def picture(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture of a question, in a list."""
    from vistok.data.images import load_image

    return [load_image(doc["image"])]


def question(doc: dict[str, Any], **settings: Any) -> str:
    """The question as it is asked."""
    return doc["question"]


def score(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the answer is right, as ``vistok eval vqa`` counts it."""
    from vistok.eval.answers.scorers import exact_match

    return {"accuracy": exact_match(results[0], (doc["answer"],))}
