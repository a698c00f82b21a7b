"""Scores of answer files: one JSON object a line with ``prediction`` and ``answers`` (or ``answer``).

MME lines also need ``category`` and ``question_id`` (the picture). Values are shares (MME: points).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from vistok.errors import VistokError, unknown_name
from vistok.eval.answers import scorers

SCORERS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "textvqa": scorers.textvqa_accuracy,
    "vqav2": scorers.vqav2_accuracy,
    "exact": scorers.exact_match,
    "docvqa": scorers.anls,
    "choice": lambda prediction, answers: float(scorers.parse_choice(prediction) in answers),
}
BENCHMARKS = (*SCORERS, "pope", "mme")


def read_answers(path: str | Path, needed: Sequence[str] = ()) -> list[dict]:
    """Records of an answer file, each with ``prediction`` and a list ``answers``.

    Args:
        path: the JSONL file.
        needed: further entries that every line must have.

    Raises:
        VistokError: an unreadable or empty file, or a line without the entries.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError as error:
        raise VistokError(f"cannot read the answers '{path}': {error.strerror}.") from error
    records = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            answers = record["answers"] if "answers" in record else [record["answer"]]
            records.append({**record, "prediction": str(record["prediction"]), "answers": [str(a) for a in answers]})
            missing = [key for key in needed if key not in record]
        except (ValueError, TypeError, KeyError) as error:
            raise VistokError(f"line {number} of '{path}' needs a prediction and answers.") from error
        if missing or not answers:
            raise VistokError(f"line {number} of '{path}' has no {', '.join(missing) or 'answers'}.")
    if not records:
        raise VistokError(f"the answer file '{path}' is empty.")
    return records


def score_answers(path: str | Path, benchmark: str) -> dict[str, float]:
    """Figures of one benchmark; the first one is its headline.

    Args:
        path: the answer file.
        benchmark: a name in :data:`BENCHMARKS`.

    Raises:
        VistokError: an unknown benchmark or a bad file.
    """
    if benchmark not in BENCHMARKS:
        raise unknown_name("benchmark", benchmark, list(BENCHMARKS))
    if benchmark == "mme":
        records = read_answers(path, needed=("category", "question_id"))
        results = [
            (r["category"], r["question_id"], float(scorers.parse_mme(r["prediction"]) == r["answers"][0].lower()))
            for r in records
        ]
        scores = scorers.mme_score(results)
        return {"total": sum(scores.values()), **scores}
    records = read_answers(path)
    if benchmark == "pope":
        predictions = [scorers.parse_pope(r["prediction"]) for r in records]
        score = scorers.pope_score(predictions, [r["answers"][0].lower() for r in records])
        return {"f1": score.f1, **score._asdict()}
    scores = [SCORERS[benchmark](r["prediction"], r["answers"]) for r in records]
    return {"anls" if benchmark == "docvqa" else "accuracy": sum(scores) / len(scores)}
