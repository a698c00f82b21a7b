"""Recursive speculative decoding: branching trees and stochastic beam search, level by level."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.samplers.policies.rsd import beam_step, gumbel_top_k

SYSTEM = "rsd"


def trees(case: Case) -> None:
    law = case.inputs["logits"].double().softmax(-1)
    gumbel = case.inputs["gumbel"].double()
    branching(case, law, gumbel)
    beam(case, law, gumbel)


def branching(case: Case, law: Tensor, gumbel: Tensor) -> None:
    before, last = (torch.tensor([token]) for token in case.config["root_context"])
    parts = {
        "tokens": [last],
        "parent": [torch.tensor([-1])],
        "depth": [torch.tensor([0])],
        "rank": [torch.tensor([0])],
    }
    chances, first = [torch.ones(1, dtype=torch.float64)], 0
    for level, width in enumerate(case.config["branching"], 1):
        above = law[before, last]
        chosen = gumbel_top_k(above, gumbel[before, last], width)
        chance = above.gather(1, chosen)
        chances.append((chance / (1 - chance.cumsum(1) + chance)).flatten())
        parts["tokens"].append(chosen.flatten())
        parts["parent"].append((first + torch.arange(len(last))).repeat_interleave(width))
        parts["depth"].append(torch.full((chosen.numel(),), level))
        parts["rank"].append(torch.arange(width).repeat(len(last)))
        first += len(last)
        before, last = last.repeat_interleave(width), chosen.flatten()
    for name, values in parts.items():
        case.equal(torch.cat(values), f"c.{name}")
    case.close(torch.cat(chances), "c.cond_prob")


def beam(case: Case, law: Tensor, gumbel: Tensor) -> None:
    before, last = (torch.tensor([[token]]) for token in case.config["root_context"])
    logprob = perturbed = torch.zeros(1, 1, dtype=torch.float64)
    parts = {"tokens": [last], "parent": [torch.tensor([[-1]])], "depth": [torch.tensor([[0]])]}
    values = {"logprob": [logprob], "perturbed": [perturbed]}
    first = 0
    for level in range(1, case.config["depth"] + 1):
        beams = beam_step(logprob, perturbed, law[before, last], gumbel[before, last], case.config["beam"])
        logprob, perturbed = beams.logprob, beams.perturbed
        parts["tokens"].append(beams.token)
        parts["parent"].append(first + beams.parent)
        parts["depth"].append(torch.full_like(beams.token, level))
        values["logprob"].append(logprob)
        values["perturbed"].append(perturbed)
        first += last.shape[1]
        before, last = last.gather(1, beams.parent), beams.token
    for name, part in parts.items():
        case.equal(torch.cat(part, 1)[0], f"s.{name}")
    for name, part in values.items():
        case.close(torch.cat(part, 1)[0], f"s.{name}")


ADAPTERS = {"trees": trees}
