"""LANTERN: neighbour tables, relaxed acceptance, tree verification, static trees, and its LlamaGen drafter."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.adapters.eagle import accepted_row, check_tree, output_layer, policy_of, run_behind, tree_buffers
from tests.golden.case import Case
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.samplers import SamplingParams
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.policies.static import StaticTree
from vistok.samplers.tree import TokenTree, TreeShape
from vistok.samplers.verifiers.relaxed import LatentNeighbours, RelaxedTree, nearest_codes
from vistok.samplers.verifiers.rules import OneHot, RecursiveRejection
from vistok.samplers.verifiers.walk import longest_path, walk_tree
from vistok.zoo.checkpoint import load_strict

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
    p, here = logits.softmax(-1), torch.arange(len(logits))
    k, delta = config["lantern_k"], config["lantern_delta"]
    neighbours = nearest_codes(inputs["codebook"], min(k + 1, config["V"] - 1))
    relaxation = rule_of(neighbours, k, delta)
    for kind, q, exact in (("topk", None, OneHot()), ("sampled", inputs["tree_q"], RecursiveRejection(False))):
        for name, rule in (("exact", exact), ("relaxed", relaxation)):
            walk = walk_tree(shape, tokens, lambda node: p[here, node], q, rule, inputs["u"])
            case.equal(walk.count - 1, f"{kind}.{name}.n_accept")
            case.equal(walk.tests, f"{kind}.{name}.n_uniforms")
            case.close(walk.law, f"{kind}.{name}.sample_p")
            case.equal(accepted_row(shape, walk.path), f"{kind}.{name}.best")
    tree = TokenTree(tokens, shape)
    exact = RelaxedTree(neighbours, 0, 0.0)
    relaxed = RelaxedTree(neighbours, k, delta, relaxation.mode, "reference")
    for name, verifier in (("exact", exact), ("relaxed", relaxed)):
        path = longest_path(shape, verifier.greedy(tree, p))
        case.equal((path > 0).sum(1), f"greedy.{name}.n_accept")
        case.equal(accepted_row(shape, path), f"greedy.{name}.best")


GRIDS = {"t2i": (16, 120), "t2i2": (32, 120), "c2i": (24, 1)}  # side of the grid, conditioning tokens


class Recorded(HeadDrafter):
    """Remembers the guided logits of every node that is expanded."""

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        guided = super().logits(hidden, positions)
        self.rows.append(guided[0])
        return guided


@torch.inference_mode()
def drafter(case: Case) -> None:
    config, inputs, outputs = case.config, case.inputs, case.outputs
    grid, prefix = GRIDS[config["input_type"]]
    network = EagleNetwork(
        EagleConfig(
            vocab_size=config["vocab"],
            hidden_size=config["hidden"],
            intermediate_size=config["intermediate"],
            num_attention_heads=config["heads"],
            num_key_value_heads=config.get("kv_heads", 0),
            rms_norm_eps=config["rms_norm_eps"],
            bias="fc.bias" in case.weights,
            grid=grid,
            cls_token_num=prefix,
        )
    )
    load_strict(network, case.weights, case.id)
    features, more_features = inputs["hidden_states"], inputs["hidden_states2"]
    tokens, more = inputs["input_ids"], inputs["input_ids2"]
    params = SamplingParams(config["cfg_scale"])
    samples = len(tokens) // 2 if params.guided else len(tokens)
    tokens, more = tokens[:samples], more[:samples]

    def begin(policy) -> Recorded:
        head = Recorded(network, output_layer(case), params, policy, more.shape[1])
        head.rows = []
        head.reset(len(features), more.shape[1])
        hidden = head.feed(features, tokens[:, 1:])
        case.close(hidden[:, -outputs["hidden_tail"].shape[1] :], "hidden_tail")
        return head

    head = begin(policy_of(config))
    check_tree(case, head, tokens, "dyn", by_leaf=True)
    head.feed(more_features, more[:, tokens.shape[1] :])
    check_tree(case, head, more, "dyn2", by_leaf=True)
    head = begin(StaticTree(tuple(tuple(path) for path in config["static_choices"])))
    head.propose(run_behind(tokens, SamplingParams(config["cfg_scale"], greedy=True)))
    best = torch.cat(head.rows).topk(outputs["static.tokens"].shape[1])
    case.equal(best.indices, "static.tokens")
    case.close(best.values, "static.scores")


ADAPTERS = {"relaxed": relaxed, "verify_tree": verify_tree, "tree_buffers": tree_buffers, "drafter": drafter}
