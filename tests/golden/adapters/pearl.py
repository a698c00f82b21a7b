"""PEARL: the law of a model's logits, and what is left of it for a rejected draft."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.ops.sampling import residual_law
from vistok.samplers import SamplingParams
from vistok.samplers.pearl import interleave

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


class Table:
    """A model whose logits are those of the last two tokens."""

    def __init__(self, logits: Tensor):
        self.logits, self.params = logits, SamplingParams(greedy=True)

    def laws(self, text: Tensor, rows: int) -> Tensor:
        before = torch.cat([text[:1], text[:-1]])
        return self.params.probabilities(self.logits[before, text][-rows:])


def greedy_run(case: Case) -> None:
    config = case.config
    target, draft = (Table(case.inputs[f"{name}_table"]) for name in ("target", "draft"))
    prompt = case.inputs["prompt"][0]
    length = len(prompt) + config["max_tokens"]
    greedy = prompt
    while len(greedy) < length:
        greedy = torch.cat([greedy, target.laws(greedy, 1).argmax(-1)])
    text, raw, counts = interleave(
        target, draft, prompt, length, config["gamma"], lambda law: law.argmax(-1, keepdim=True), lambda: 0.5
    )
    case.equal(greedy[None], "greedy")
    # The reference returns the tail as it was drafted; ours verifies it, and is plain decoding's to the last token.
    case.equal(raw[None], "sequence")
    assert torch.equal(text[:length], greedy[: len(text)])
    case.equal(torch.tensor(counts.accepted), "accepted_per_round")
    case.equal(torch.tensor(counts.draft_forwards), "draft_forwards")
    case.equal(torch.tensor(counts.target_forwards), "target_forwards")


ADAPTERS = {"norm_and_residual": norm_and_residual, "greedy_run": greedy_run}
