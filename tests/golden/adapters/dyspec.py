"""DySpec: trees by budget, drawn and most likely, and by a threshold, level by level."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.ops.tree import tree_depths
from vistok.samplers.policies.dyspec import Grown, grow_by_budget, grow_by_layers, heavy_first

SYSTEM = "dyspec"


class TableDraft:
    """A draft law that depends on the last two tokens of a path; it remembers the tokens of all nodes."""

    def __init__(self, law: Tensor, gumbel: Tensor, context: list[int]):
        self.params, self.gumbel = law, gumbel
        self.before, self.tokens = context[0], torch.tensor([[context[1]]])
        self.calls = 0

    def root(self) -> tuple[Tensor, Tensor]:
        self.calls += 1
        last = self.tokens[:, 0]
        return self.params[self.before, last], self.gumbel[self.before, last]

    def __call__(self, tokens: Tensor, parents: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        before = self.tokens.gather(1, parents[:, -tokens.shape[1] :])
        self.tokens = torch.cat([self.tokens, tokens], 1)
        return self.params[before, tokens], self.gumbel[before, tokens]


def tree(case: Case) -> None:
    config = case.config
    law = case.inputs["draft"].double()
    law = law / law.sum(-1, keepdim=True)
    gumbel = case.inputs["gumbel"].double()
    for name, noise in (("greedy", torch.zeros_like(gumbel)), ("sample", gumbel)):
        draft = TableDraft(law, noise, config["root_context"])
        grown = grow_by_budget(*draft.root(), draft, config["budget"])
        compare(case, grown, name)
        case.close(torch.cat([torch.tensor([-1.0]), grown.slot_value[0, 1:]]), f"{name}.slot_value")
    case.equal(torch.tensor(heavy_first(grown.parents[0].tolist())), "sample.hpd_order")
    draft = TableDraft(law, gumbel, config["root_context"])
    limits = (config["threshold"], config["max_nodes"], config["max_depth"], config["V"])
    compare(case, grow_by_layers(*draft.root(), draft, *limits), "layer")
    case.equal(torch.tensor([draft.calls]), "layer.draft_calls")


def compare(case: Case, grown: Grown, name: str) -> None:
    """Tokens, parents, depths and values of a tree; the root carries the last token of the context."""
    tokens = grown.tokens[0].clone()
    tokens[0] = case.config["root_context"][1]
    case.equal(tokens, f"{name}.tokens")
    case.equal(grown.parents[0], f"{name}.parent")
    case.equal(tree_depths(grown.parents)[0], f"{name}.depth")
    case.close(grown.value[0], f"{name}.value")


ADAPTERS = {"tree": tree}
