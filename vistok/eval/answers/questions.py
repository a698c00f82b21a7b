"""Questions about pictures, from the world of scenes or a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vistok.errors import VistokError


@dataclass(frozen=True)
class Asked:
    """A question about a picture, the answers that count as right, its kind, and where it was read."""

    picture: Image.Image
    question: str
    answers: tuple[str, ...]
    kind: str = ""
    source: str = ""


def scene_questions(
    side: int, scenes: int, each: int, split: str = "plain", kinds: Sequence[str] | None = None
) -> list[Asked]:
    """Returns questions about held-out scenes, evenly over kinds and answers.

    Args:
        side: of the pictures in pixels.
        scenes: how many pictures.
        each: questions about each.
        split: of the scenes, see ``vistok.data.scenes.vqa_splits``.
        kinds: of the questions; those of the split if None.

    Raises:
        VistokError: an unknown split, or a scene has no such question.
    """
    from vistok.data.images import to_pil
    from vistok.data.scenes import render
    from vistok.data.scenes.vqa_splits import split_questions, split_scenes

    drawn = split_scenes(split, scenes)
    questions = split_questions(drawn, split, each, None if kinds is None else dict.fromkeys(kinds, 1.0))
    rows = zip(to_pil(render(drawn, side)), questions, strict=True)
    asked = [Asked(picture, q.text, (q.answer,), q.kind) for picture, row in rows for q in row]
    if not asked:
        raise VistokError(f"none of the {scenes} {split} scenes has a question of kind {', '.join(kinds or ())}.")
    return asked


def read_questions(path: str | Path, refused: list[str] | None = None) -> list[Asked]:
    """Questions of a JSONL file: ``image`` (a path, relative to the file), ``question``, ``answers`` or ``answer``.

    Args:
        path: the file.
        refused: takes a sentence for each question whose picture cannot be read, which is then left out; such a
            picture is an error if None.

    Raises:
        VistokError: no such file, a line without the entries, or no question that can be asked.
    """
    from vistok.data.images import load_image

    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise VistokError(f"cannot read the questions '{path}': {error.strerror}.") from error
    asked = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            answers = entry["answers"] if "answers" in entry else [entry["answer"]]
            where, question = path.parent / entry["image"], str(entry["question"])
        except (ValueError, TypeError, KeyError) as error:
            raise VistokError(f"line {number} of '{path}' needs an image, a question and answers.") from error
        source = f"line {number} of '{path}', '{entry['image']}'"
        try:
            picture = load_image(where)
        except VistokError as error:
            if refused is None:
                raise VistokError(f"{source}: {error}") from error
            refused.append(f"{source}: {error}")
            continue
        asked.append(Asked(picture, question, tuple(map(str, answers)), str(entry.get("type", "")), source))
    if not asked and refused:
        raise VistokError(f"no picture of '{path}' can be read; {refused[0]}")
    if not asked:
        raise VistokError(f"the question file '{path}' is empty.")
    return asked
