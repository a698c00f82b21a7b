"""LANTERN: neighbour tables, relaxed acceptance, tree verification, static trees, and its LlamaGen drafter."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.adapters.eagle import accepted_row, tree_buffers
from tests.golden.case import Case
from vistok.samplers.candidates import OneHot, RecursiveRejection, longest_path, walk_tree
from vistok.samplers.relaxed import LatentNeighbours, RelaxedTree, nearest_codes
from vistok.samplers.tree import TokenTree, TreeShape

SYSTEM = "lantern"


def rule_of(neighbours: Tensor, k: int, delta: float) -> LatentNeighbours:
    """The reference's one option: above 1 it is the multiplicative bound."""
    return LatentNeighbours(neighbours, k, delta, "multiplicative" if delta > 1 else "additive", "reference")


def relaxed(case: Case) -> None:
    size = case.config["V"]
    neighbours = nearest_codes(case.inputs["codebook"], size - 1)
    case.equal(neighbours, "nn_index")
    p = case.inputs["logits"].softmax(-1)
    case.close(p, "p")
    rejected = case.inputs["residual_tokens"]
    for number, combination in enumerate(case.config["combos"]):
        rule = rule_of(neighbours, combination["k"], combination["delta"])
        chance = rule.relaxed(p.expand(size, -1), torch.arange(size)).clamp(max=1)
        case.close(chance, f"accept_prob.{number}")
        rows = p.expand(len(rejected), -1)
        for q, name in ((None, "topk"), (case.inputs["q"].expand(len(rejected), -1), "sampled")):
            state = rule.enter(rows, q, torch.ones_like(rejected))
            state = rule.test(state, rejected, torch.ones(len(rejected), dtype=p.dtype))[1]
            case.close(rule.law(state), f"residual_{name}_draft.{number}")


def verify_tree(case: Case) -> None:
    inputs, config = case.inputs, case.config
    shape = TreeShape.of_paths([tuple(path) for path in config["choices"]])
    assert torch.equal(shape.paths, inputs["retrieve_indices"])
    tokens, logits = inputs["tree_tokens"], inputs["tree_logits"]
    p = logits.softmax(-1)
    k, delta = config["lantern_k"], config["lantern_delta"]
    neighbours = nearest_codes(inputs["codebook"], min(k + 1, config["V"] - 1))
    relaxation = rule_of(neighbours, k, delta)
    for kind, q, exact in (("topk", None, OneHot()), ("sampled", inputs["tree_q"], RecursiveRejection(False))):
        for name, rule in (("exact", exact), ("relaxed", relaxation)):
            walk = walk_tree(shape, tokens, p, q, rule, inputs["u"])
            case.equal(walk.count - 1, f"{kind}.{name}.n_accept")
            case.equal(walk.tests, f"{kind}.{name}.n_uniforms")
            case.close(walk.law, f"{kind}.{name}.sample_p")
            case.equal(accepted_row(shape, walk.path, walk.count), f"{kind}.{name}.best")
    tree = TokenTree(tokens, shape)
    exact = RelaxedTree(neighbours, 0, 0.0)
    relaxed = RelaxedTree(neighbours, k, delta, relaxation.mode, "reference")
    for name, verifier in (("exact", exact), ("relaxed", relaxed)):
        path, count = longest_path(shape, verifier.greedy(tree, p))
        case.equal(count - 1, f"greedy.{name}.n_accept")
        case.equal(accepted_row(shape, path, count), f"greedy.{name}.best")


ADAPTERS = {"relaxed": relaxed, "verify_tree": verify_tree, "tree_buffers": tree_buffers}
