"""PEARL: the law of a model's logits, and what is left of it for a rejected draft."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.ops.sampling import residual_law
from vistok.samplers import SamplingParams

SYSTEM = "pearl"


def norm_and_residual(case: Case) -> None:
    for name, (temperature, top_k, top_p) in case.config["settings"].items():
        greedy = temperature == 0
        params = SamplingParams(temperature=temperature or 1.0, top_k=top_k, top_p=top_p or 1.0, greedy=greedy)
        p, q = (params.probabilities(case.inputs[key]) for key in ("logits", "logits_draft"))
        case.close(p, f"{name}.p")
        case.close(q, f"{name}.q")
        # Where nothing is left the draft is never rejected: p by our convention, zeros in the fixture.
        left = ((p - q).clamp(min=0).sum(1, keepdim=True) > 1e-10).to(p.dtype)
        case.close(residual_law(p, q) * left, f"{name}.residual")


ADAPTERS = {"norm_and_residual": norm_and_residual}
