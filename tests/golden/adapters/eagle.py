"""EAGLE: drafters, trees and multi-candidate verification."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.models.heads.eagle3_config import Eagle3Config
from vistok.samplers import Noise, SamplingParams
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.run import Run
from vistok.samplers.tree import TreeShape
from vistok.samplers.verifiers.rules import OneHot
from vistok.samplers.verifiers.walk import longest_path, walk_tree
from vistok.zoo.checkpoint import load_strict

SYSTEM = "eagle"


def accepted_row(shape: TreeShape, path: Tensor) -> Tensor:
    """First root-to-leaf path that begins with the accepted nodes, int64 [B]."""
    same = (shape.paths == path[:, None]) | (path < 0)[:, None]
    return same.all(-1).long().argmax(1)


def posterior(case: Case) -> None:
    inputs = case.inputs
    shape = TreeShape.of_paths([tuple(path) for path in case.config["choices"]])
    assert torch.equal(shape.paths, inputs["retrieve_indices"])
    p = inputs["tree_logits"].softmax(-1)
    here = torch.arange(len(p))
    walk = walk_tree(shape, inputs["tree_tokens"], lambda node: p[here, node], None, OneHot(), inputs["u"])
    case.equal(walk.count - 1, "n_accept")
    case.equal(accepted_row(shape, walk.path), "best")
    case.close(walk.law, "sample_p")
    parents = shape.parents.clamp(min=0).expand_as(inputs["tree_tokens"])
    path = longest_path(shape, p.argmax(-1).gather(1, parents) == inputs["tree_tokens"])
    case.equal((path > 0).sum(1), "greedy.n_accept")
    case.equal(accepted_row(shape, path), "greedy.best")


def tree_buffers(case: Case) -> None:
    """The reference's index tables, which say in other words who is whose child and of which rank."""
    shape, width = TreeShape.of_paths([tuple(path) for path in case.config["choices"]]), case.config["TOPK"]
    parents, rank, depth = shape.parents[0], shape.rank[0], shape.depth[0]
    case.equal(shape.ancestors[:, None], "tree_attn_mask")
    case.equal(depth, "tree_position_ids")
    case.equal(shape.paths, "retrieve_indices")
    order = torch.zeros(shape.nodes + 1, dtype=torch.int64)  # of the nodes that have children
    within = torch.zeros(shape.nodes + 1, dtype=torch.int64)  # the same, within their depth
    order[torch.cat(shape.expanded)] = torch.arange(len(torch.cat(shape.expanded)))
    for level in shape.expanded:
        within[level] = torch.arange(len(level))
    case.equal(torch.where(parents < 0, 0, width * order[parents] + rank + 1), "tree_indices")
    # Padding reads the last node's entry there.
    case.equal(torch.where(parents < 0, -1, within[parents])[shape.paths], "p_indices")
    earlier = torch.full((shape.nodes + 1, int(rank.max())), -1)
    for node in range(1, shape.nodes):
        siblings = shape.children[0, parents[node]]
        earlier[node, : rank[node]] = siblings[: rank[node]]
    case.equal(earlier[shape.paths], "b_indices")
    below = torch.zeros(0, dtype=torch.int64)
    for number, level in enumerate(shape.expanded[1:]):
        below = torch.cat([below, level])
        case.equal(shape.ancestors[0][level][:, below][None, None], f"drafter.{number}.attn_mask")
        case.equal(width * within[parents[level]] + rank[level], f"drafter.{number}.tree_indices")
        case.equal(torch.zeros_like(level), f"drafter.{number}.position_ids")
        case.equal(parents[level].unique(return_counts=True)[1], f"drafter.{number}.repeat_nums")


def output_layer(case: Case) -> torch.nn.Module:
    """The target's head."""
    weight = case.tensors["weights_head.weight"]
    head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    head.weight.data = weight
    return head


def run_behind(tokens: Tensor, params: SamplingParams) -> Run:
    """A run whose last decided token is the last of these, int64 [B, n]."""
    batch, decided = tokens.shape
    noise = Noise(0, torch.arange(batch))
    counts, none = torch.full((batch,), decided), torch.zeros(batch, 0)
    return Run(params, noise, decided + 1, tokens, counts, none, none, none, final=counts + 1)


def check_tree(case: Case, head: HeadDrafter, tokens: Tensor, name: str, by_leaf: bool = False) -> None:
    """Grow a tree behind these tokens and compare it with the case's; its paths may be in the order of their leaves."""
    tree = head.propose(run_behind(tokens, head.params))
    case.equal(tree.tokens, f"{name}.draft_tokens")
    paths = tree.shape.paths
    if by_leaf:
        paths = paths[paths.amax(1).argsort()]
    case.equal(paths, f"{name}.retrieve_indices")
    case.equal(tree.shape.ancestors[:, None], f"{name}.tree_mask")
    case.equal(tree.shape.depth[0], f"{name}.position_ids")


def policy_of(config: dict) -> DynamicTree:
    """The reference counts the root among its tokens."""
    return DynamicTree(config["total_tokens_arg"] - 1, config["depth"], config["top_k"])


@torch.inference_mode()
def drafter(case: Case) -> None:
    config, inputs = case.config, case.inputs
    third = case.kind == "eagle3_drafter"
    shape = {
        "vocab_size": config["vocab"],
        "hidden_size": config["hidden"],
        "intermediate_size": config["intermediate"],
        "num_attention_heads": config["heads"],
        "num_key_value_heads": config.get("kv_heads", 0),
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_theta": config["rope_theta"],
    }
    if third:
        states = case.weights["fc.weight"].shape[1] // 3
        drafted = config.get("draft_vocab", 0)
        network = Eagle3Network(Eagle3Config(**shape, draft_vocab_size=drafted, target_hidden_size=states))
    else:
        biases = "layers.0.self_attn.q_proj.bias" in case.weights
        network = EagleNetwork(EagleConfig(**shape, bias=config.get("bias", True), qkv_bias=biases))
    load_strict(network, case.weights, case.id)
    target_head = None if third else output_layer(case)
    tokens, more = inputs["input_ids"], inputs["input_ids2"]
    head = HeadDrafter(network, target_head, SamplingParams(), policy_of(config), more.shape[1])
    head.reset(len(tokens), more.shape[1])
    hidden = head.feed(inputs["hidden_states"], tokens[:, 1:])
    case.close(hidden, "hidden")
    if third:
        case.close(network.logits(hidden), "draft_logits")
    check_tree(case, head, tokens, "call1")
    head.feed(inputs["hidden_states2"], more[:, tokens.shape[1] :])
    check_tree(case, head, more, "call2")


@torch.inference_mode()
def speculators(case: Case) -> None:
    """A head of the ``speculators`` project: a step over the target's states, then one over its own output."""
    network = Eagle3Network(Eagle3Network.describe(case.config, case.weights, {})).eval()
    load_strict(network, network.complete(case.weights), case.id)
    tokens = case.inputs["tokens"]
    width = tokens.shape[1]
    cache = network.new_cache(1, 2 * width)
    features = network.read(case.inputs["features"])
    case.close(network.states(features, tokens), "hidden")
    fed = network(case.inputs["features"], tokens, cache)
    cache.advance(width)
    logits = network.logits(fed)
    case.close(logits, "logits")
    if "out.target_ids" in case.tensors:
        case.equal(network.token(logits.argmax(-1)), "target_ids")
    # Slot j of the second step sees the first step's slots up to j and itself, one position later.
    slots = torch.arange(width - 1)
    seen = torch.cat([torch.arange(width) <= slots[:, None], torch.eye(width - 1, dtype=torch.bool)], 1)
    second = network(fed[:, :-1], tokens[:, 1:], cache, slots[None] + 1, seen[None])
    case.close(network.logits(second), "logits_second")


ADAPTERS = {
    "posterior": posterior,
    "tree_buffers": tree_buffers,
    "eagle2_drafter": drafter,
    "eagle3_drafter": drafter,
    "speculators_eagle3": speculators,
}
