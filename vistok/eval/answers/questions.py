"""Questions about pictures, from the world of scenes or a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vistok.errors import VistokError
from vistok.eval.answers.benchmarks import answer_texts
from vistok.files import read_json_lines


@dataclass(frozen=True)
class Asked:
    """A question about a picture, the answers that count as right, its kind, and where it was read.

    Questions about one picture hold the same object.
    """

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
    asked, read = [], {}  # questions about one file share its picture, by which intervals are taken
    for number, entry in read_json_lines(path, "question file"):
        source = f"line {number} of '{path}'"
        named = all(isinstance(entry.get(key), str) for key in ("image", "question"))
        if not named or not ("answers" in entry or "answer" in entry):
            raise VistokError(f"{source} needs an image, a question and answers.")
        answers = answer_texts(entry, source)
        source = f"{source}, '{entry['image']}'"
        place = os.path.realpath(path.parent / entry["image"])
        try:
            if place not in read:
                read[place] = load_image(path.parent / entry["image"])
        except VistokError as error:
            if refused is None:
                raise VistokError(f"{source}: {error}") from error
            refused.append(f"{source}: {error}")
            continue
        asked.append(Asked(read[place], entry["question"], tuple(answers), str(entry.get("type", "")), source))
    if not asked and refused:
        raise VistokError(f"no picture of '{path}' can be read; {refused[0]}")
    return asked
