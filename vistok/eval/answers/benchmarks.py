"""Scores of answer files: one JSON object a line with ``prediction`` and ``answers`` (or ``answer``).

MME lines also need ``category`` and ``question_id`` (the picture). Values are shares (MME: points).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vistok.errors import VistokError, unknown_name
from vistok.eval.answers import scorers
from vistok.files import read_json_lines

SCORERS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "textvqa": scorers.textvqa_accuracy,
    "vqav2": scorers.vqav2_accuracy,
    "exact": scorers.exact_match,
    "docvqa": scorers.anls,
    "choice": lambda prediction, answers: float(scorers.parse_choice(prediction) in answers),
}
BENCHMARKS = (*SCORERS, "pope", "mme")
YES_NO = ("yes", "no")


def read_answers(path: str | Path, needed: Sequence[str] = (), allowed: Sequence[str] = ()) -> list[dict]:
    """Returns the records of an answer file, each with ``prediction`` and a list ``answers`` of texts.

    Args:
        path: the JSONL file; an answer alone stands for a list of one, and numbers for their text.
        needed: further entries that every line must have.
        allowed: what the first answer may be, in any case; anything if empty.

    Raises:
        VistokError: an unreadable or empty file, or a line without the entries; the sentence names the line.
    """
    records = []
    for number, record in read_json_lines(path, "answer file"):
        where = f"line {number} of '{path}'"
        if "prediction" not in record or not ("answers" in record or "answer" in record):
            raise VistokError(f"{where} needs a prediction and answers.")
        answers, (prediction,) = answer_texts(record, where), _texts([record["prediction"]], where)
        if missing := [key for key in needed if not isinstance(record.get(key), (str, int))]:
            raise VistokError(f"{where} has no {', '.join(missing)}.")
        if allowed and answers[0].lower() not in allowed:
            raise VistokError(f"{where} has the answer {answers[0]!r}, expected {' or '.join(allowed)}.")
        records.append({**record, "prediction": prediction, "answers": answers})
    return records


def answer_texts(record: Mapping[str, Any], where: str) -> list[str]:
    """Returns the right answers of a record, its ``answers`` or its ``answer``: one stands for a list of one.

    Args:
        record: with one of the two entries.
        where: what sentences call the record.

    Raises:
        VistokError: there is none, or one is neither a text nor a number.
    """
    answers = record["answers"] if "answers" in record else record["answer"]
    texts = _texts(answers if isinstance(answers, list) else [answers], where)
    if not texts:
        raise VistokError(f"{where} has no answers.")
    return texts


def _texts(values: Sequence[Any], where: str) -> list[str]:
    # A number that is none, such as the NaN that pandas writes for a missing answer, is no answer either.
    if strange := [each for each in values if not (isinstance(each, str) or _is_number(each))]:
        raise VistokError(f"{where} has {strange[0]!r} where a text is expected: give each answer as one text.")
    return [str(each) for each in values]


def score_answers(path: str | Path, benchmark: str) -> dict[str, float]:
    """Returns the figures of one benchmark; the first one is its headline.

    Args:
        path: the answer file.
        benchmark: a name in :data:`BENCHMARKS`.

    Raises:
        VistokError: an unknown benchmark or a bad file.
    """
    return score_records(read_benchmark(path, benchmark), benchmark)


def read_benchmark(path: str | Path, benchmark: str) -> list[dict]:
    """Returns the records of an answer file with what a benchmark needs; see ``read_answers``.

    Raises:
        VistokError: an unknown benchmark or a bad file.
    """
    if benchmark not in BENCHMARKS:
        raise unknown_name("benchmark", benchmark, list(BENCHMARKS))
    needed = ("category", "question_id") if benchmark == "mme" else ()
    return read_answers(path, needed, YES_NO if benchmark in ("mme", "pope") else ())


def score_records(records: Sequence[dict], benchmark: str) -> dict[str, float]:
    """Returns the figures of the records that ``read_benchmark`` gives; the first one is the headline."""
    if benchmark == "mme":
        results = [
            (str(r["category"]), r["question_id"], float(scorers.parse_mme(r["prediction"]) == r["answers"][0].lower()))
            for r in records
        ]
        scores = scorers.mme_score(results)
        return {"total": sum(scores.values()), **scores}
    if benchmark == "pope":
        predictions = [scorers.parse_pope(r["prediction"]) for r in records]
        score = scorers.pope_score(predictions, [r["answers"][0].lower() for r in records])
        return {"f1": score.f1, **score._asdict()}
    scores = [SCORERS[benchmark](r["prediction"], r["answers"]) for r in records]
    return {"anls" if benchmark == "docvqa" else "accuracy": sum(scores) / len(scores)}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
