"""Answer normalisation and scores of multimodal benchmarks."""

from __future__ import annotations

import pytest
import torch

from tests.golden.case import Case
from vistok.eval.answers import scorers

SYSTEM = "mllm_answers"


def answers(case: Case) -> None:
    cases = case.meta["cases"]
    parsers = {
        "normalise": scorers.normalise_answer,
        "mme_parse": scorers.parse_mme,
        "pope_original_parse": scorers.parse_pope,
    }
    rules = {"anls": scorers.anls, "textvqa": scorers.textvqa_accuracy, "vqav2": scorers.vqav2_accuracy}
    for name, entries in cases.items():
        if name in parsers:
            for entry in entries:
                assert parsers[name](entry["in"]) == entry["out"], entry
        elif name in rules:
            scores = [rules[name](entry["pred"], entry["answers"]) for entry in entries]
            assert scores == pytest.approx([entry["out"] for entry in entries], abs=case.atol, rel=case.rtol)
            case.close(torch.tensor(scores, dtype=torch.float64), name)
        elif name == "mme_total":
            results = [(r["category"], r["question_id"], r["score"]) for r in entries["results"]]
            assert sum(scorers.mme_score(results).values()) == pytest.approx(entries["out"], rel=case.rtol)
        elif name == "pope_metrics":
            found = scorers.pope_score(
                [r["prediction"] for r in entries["results"]], [r["ground_truth"] for r in entries["results"]]
            )
            expected = [entries[k] for k in ("accuracy", "precision", "recall", "f1", "yes_ratio_of_predictions")]
            assert list(found) == pytest.approx(expected, rel=case.rtol)
        else:
            raise AssertionError(f"no scorer for '{name}'")


ADAPTERS = {"answers": answers}
