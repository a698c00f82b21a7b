"""Parallel prompt decoding: the sparse trees' rows, the search for them, and the published acceptance rules."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.samplers.drafters.extra_rows import hang
from vistok.samplers.policies.sparse import SparseTrees, best_sparse_trees
from vistok.samplers.tree import TokenTree, TreeShape
from vistok.samplers.verifiers.typical import typical
from vistok.samplers.verifiers.walk import longest_path

SYSTEM = "ppd"


def tree_buffers(case: Case) -> None:
    """The reference mixes nodes and prompt tokens, sorted by depth and path, where prompt token k is the element -k."""
    ahead, top = case.config["num_special_tokens"], case.config["TOPK"]
    given = {int(s): [(tuple(path), looks) for path, looks, *_ in tree] for s, tree in case.config["trees"].items()}
    trees = SparseTrees(given, ahead)
    network = PromptTokens(torch.zeros(ahead, 4))
    for state, tree in given.items():
        nodes, rows = int(trees.nodes[state]), int(trees.predictions[state])
        shape = TreeShape(trees.parents[state : state + 1, :nodes])
        extra = hang(network, trees.attach[state : state + 1, :rows], trees.which[state : state + 1, :rows])
        depth, seen = TokenTree(torch.zeros(1, nodes, dtype=torch.int64), shape, extra=extra).rows()
        paths = [(), *sorted((path for path, _ in tree), key=lambda path: (len(path), path))]
        whose = list(zip(extra.attach[0].tolist(), trees.which[state].tolist(), strict=False))
        keys = paths + [(*paths[node], *range(-1, -k - 2, -1)) for node, k in whose]
        order = torch.tensor(sorted(range(len(keys)), key=lambda i: (len(keys[i]), keys[i])))
        place = order.argsort()
        rank, level = trees.rank[state, :nodes], trees.depth[state, :nodes]
        index = torch.where(level > 0, top * (level - 1) + rank + 1, 0)
        index = torch.cat([index, trees.which[state, :rows] - ahead])
        case.equal(index[order], f"state{state}.tree_indices")
        case.equal(depth[0, order], f"state{state}.position_ids")
        case.equal(seen[0, order][:, order].to(torch.uint8), f"state{state}.attn_mask")
        case.equal(place[:nodes], f"state{state}.normal_token_indices")
        case.equal(_of_nodes(trees, state, place[nodes:], ahead), f"state{state}.prompt_token_indices")
        leaves = shape.paths
        ends = leaves.amax(1)
        case.equal(leaves[ends.argsort(descending=True)], f"state{state}.retrieve_indices")


def _of_nodes(trees: SparseTrees, state: int, place: Tensor, ahead: int) -> Tensor:
    table = torch.full((int(trees.nodes[state]), ahead), -1)
    for row, (node, k) in enumerate(zip(trees.attach[state].tolist(), trees.which[state].tolist(), strict=True)):
        if node >= 0:
            table[node, k] = place[row]
    return table


def sparse_tree_builder(case: Case) -> None:
    accuracy = case.inputs["accuracies"][: case.config["depths"], : case.config["width"]].tolist()
    for state, tree in best_sparse_trees(accuracy, case.config["limit"]).items():
        paths = torch.tensor([[*path, *[-1] * (len(accuracy) - len(path))] for path, *_ in tree])
        case.equal(paths, f"state{state}.paths")
        case.equal(torch.tensor([looks for _, looks, _ in tree]), f"state{state}.n_prompt")
        case.close(torch.tensor([chance for *_, chance in tree], dtype=torch.float64), f"state{state}.node_acc")


def posterior(case: Case) -> None:
    """The paths of a trial are chains that share their root."""
    logits, tokens = case.inputs["logits"][:, :, :-1], case.inputs["candidates"][:, :, 1:]
    paths, depth = tokens.shape[1:]
    shape = TreeShape.of_paths([(path, *[0] * level) for path in range(paths) for level in range(depth)])
    config = case.config
    law = (logits / config["temperature"]).softmax(-1)
    passed, chance = typical(law, tokens, config["posterior_threshold"], config["posterior_alpha"])

    def nodes(values: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(values[:, :1, 0]), values.mT.flatten(1)], 1)

    _compare(case, "greedy", longest_path(shape, nodes(logits.argmax(-1) == tokens)), paths)
    _compare(case, "typical", longest_path(shape, nodes(passed), nodes(chance)), paths)


def _compare(case: Case, rule: str, path: Tensor, paths: int) -> None:
    accepted = (path >= 0).sum(1) - 1
    end = path.gather(1, accepted[:, None])[:, 0]
    case.equal(accepted, f"{rule}.accept")
    case.equal(torch.where(accepted > 0, (end - 1) % paths, 0), f"{rule}.best")


ADAPTERS = {"tree_buffers": tree_buffers, "sparse_tree_builder": sparse_tree_builder, "posterior": posterior}
