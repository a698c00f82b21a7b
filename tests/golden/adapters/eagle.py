"""EAGLE: drafters, trees and multi-candidate verification."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.samplers.candidates import OneHot, longest_path, walk_tree
from vistok.samplers.tree import TreeShape

SYSTEM = "eagle"


def accepted_row(shape: TreeShape, path: Tensor, count: Tensor) -> Tensor:
    """First root-to-leaf path that begins with the accepted nodes, int64 [B]."""
    levels = torch.arange(path.shape[1])
    same = (shape.paths == path[:, None]) | (levels >= count[:, None])[:, None]
    return same.all(-1).long().argmax(1)


def posterior(case: Case) -> None:
    inputs = case.inputs
    shape = TreeShape.of_paths([tuple(path) for path in case.config["choices"]])
    assert torch.equal(shape.paths, inputs["retrieve_indices"])
    p = inputs["tree_logits"].softmax(-1)
    walk = walk_tree(shape, inputs["tree_tokens"], p, None, OneHot(), inputs["u"])
    case.equal(walk.count - 1, "n_accept")
    case.equal(accepted_row(shape, walk.path, walk.count), "best")
    case.close(walk.law, "sample_p")
    parents = shape.parents.clamp(min=0).expand_as(inputs["tree_tokens"])
    path, count = longest_path(shape, p.argmax(-1).gather(1, parents) == inputs["tree_tokens"])
    case.equal(count - 1, "greedy.n_accept")
    case.equal(accepted_row(shape, path, count), "greedy.best")


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


ADAPTERS = {"posterior": posterior, "tree_buffers": tree_buffers}
