"""Lossy acceptance rules: judge decoding and confidence spans."""

from __future__ import annotations

import re

from tests.golden.case import Case
from vistok.samplers.verifiers.relaxed import confidence_span, judged_span

SYSTEM = "spec_relaxed"


def spans(case: Case) -> None:
    for name in case.outputs:
        percent = int(re.fullmatch(r"span_(\d+)", name)[1])
        case.equal(confidence_span(case.inputs["prob"], percent / 100), name)


def judge(case: Case) -> None:
    inputs = case.inputs
    kept, score = judged_span(
        inputs["match"].bool(), inputs["hidden"], inputs["weight"], inputs["bias"], case.config["threshold"]
    )
    case.equal(kept, "accepted")
    case.close(score, "score")


ADAPTERS = {"confidence_span": spans, "judge": judge}
