"""Lossy acceptance rules: judge decoding and confidence spans."""

from __future__ import annotations

import re

import torch

from tests.golden.case import Case
from vistok.models.heads.judge import JudgeConfig, JudgeHead
from vistok.samplers import Judge, Noise, SamplingParams
from vistok.samplers.run import Run, Scores
from vistok.samplers.tree import TokenTree, TreeShape
from vistok.samplers.verifiers.confidence import confidence_span

SYSTEM = "spec_relaxed"


def spans(case: Case) -> None:
    for name in case.outputs:
        percent = int(re.fullmatch(r"span_(\d+)", name)[1])
        case.equal(confidence_span(case.inputs["prob"], percent / 100), name)


def judge(case: Case) -> None:
    """Chains of token 0, which the target would say where the drafts match, and else token 1."""
    inputs, outputs = case.inputs, case.outputs
    hidden, match = inputs["hidden"], inputs["match"].bool()
    head = JudgeHead(JudgeConfig(hidden.shape[-1])).double()
    head.load_state_dict({"score.weight": inputs["weight"][None], "score.bias": inputs["bias"]})
    case.close(head(hidden), "score")
    batch, drafts = match.shape
    tree = TokenTree(torch.zeros(batch, drafts + 1, dtype=torch.int64), TreeShape.chain_of(drafts + 1))
    logits = torch.stack([match, ~match], -1).double()
    scores = Scores(torch.cat([logits, logits[:, :1]], 1), torch.cat([hidden[:, :1], hidden], 1))
    noise = Noise(0, torch.arange(batch))
    run = Run.begin(SamplingParams(greedy=True), noise, logits[:, 0], drafts + 3, drafts + 1)
    verdict = Judge(head, case.config["threshold"]).verify(tree, scores, run)
    case.equal(verdict.count - 1, "accepted")
    kept = outputs["accepted"]
    stopped = kept < drafts  # where the target's own token takes the place of the first draft that failed
    own = verdict.emitted.gather(1, kept[:, None])[:, 0]
    assert torch.equal(own[stopped], torch.ones_like(own[stopped]))


ADAPTERS = {"confidence_span": spans, "judge": judge}
