"""Verification rules for several candidates: recursive rejection, one-hot, k-sequential; decisions, residuals,
acceptance.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from torch import Tensor

from tests.golden.case import Case
from vistok.samplers.tree import TreeShape
from vistok.samplers.verifiers.rules import KSequential, OneHot, RecursiveRejection, k_sequential
from vistok.samplers.verifiers.walk import walk_tree

SYSTEM = "spec_verify"


def siblings(case: Case, rule):
    """One level of K candidates: the walk, and the index of the accepted candidate or -1."""
    p, q, candidates = (case.inputs[name] for name in ("p", "q", "candidates"))
    shape = TreeShape(torch.tensor([[-1, *[0] * candidates.shape[1]]]))
    tokens = torch.cat([torch.zeros_like(candidates[:, :1]), candidates], 1)
    laws = q[:, None].expand(-1, tokens.shape[1], -1)
    walk = walk_tree(shape, tokens, lambda node: p, laws, rule, case.inputs["uniforms"])
    return walk, torch.where(walk.path[:, 1] > 0, walk.path[:, 1] - 1, -1)


def rrs(case: Case) -> None:
    replacement = case.meta["source"].endswith("_MCSSwReplacement")
    walk, index = siblings(case, RecursiveRejection(replacement))
    case.equal(index, "accept_index")
    case.close(torch.where(index[:, None] < 0, walk.law, 0.0), "residual")


def k_seq(case: Case) -> None:
    p, q, candidates = (case.inputs[name] for name in ("p", "q", "candidates"))
    k = torch.full((len(p),), candidates.shape[1])
    rho, beta, accepted = k_sequential(p, q, k)
    for value, name in ((rho, "rho"), (beta, "beta"), (accepted, "p_accept")):
        case.close(value, name)
    rule = KSequential()
    case.close(rule.law(rule.enter(p, q, k)), "residual")
    case.equal(siblings(case, rule)[1], "accept_index")


def tree(case: Case) -> None:
    inputs, buffers = case.inputs, case._under("buf.")
    shape = TreeShape.of_paths([tuple(path) for path in case.config["tree_choices"]])
    assert torch.equal(shape.parents[0], inputs["parent"])
    assert torch.equal(shape.paths, buffers["retrieve_indices"])
    assert torch.equal(shape.depth[0], buffers["tree_position_ids"])
    assert torch.equal(shape.ancestors[0], buffers["tree_attn_mask"][0, 0].bool())
    p = (inputs["target_logits"] / case.config.get("temperature", 1.0)).softmax(-1)
    rule, q = (OneHot(), None) if case.kind == "eagle2_tree" else (RecursiveRejection(False), inputs["draft_probs"])
    here = torch.arange(len(p))
    walk = walk_tree(shape, inputs["tree_tokens"], lambda node: p[here, node], q, rule, inputs["uniforms"])
    case.equal(walk.count - 1, "accept_length")
    case.equal(walk.path, "accepted_nodes")
    case.close(walk.law, "sample_p")


def acceptance(rule, p: Tensor, q: Tensor, candidates: Tensor) -> Tensor:
    """Exact probability that one of the candidates [C, K] is accepted, summed test by test, [C]."""
    many, k = candidates.shape
    state = rule.enter(p.expand(many, -1), q.expand(many, -1), torch.full((many,), k))
    refused = torch.ones(many, dtype=p.dtype)
    for token in candidates.T:
        refused = refused * (1 - threshold(rule, state, token))
        state = rule.test(state, token, torch.ones(many, dtype=p.dtype))[1]
    return 1 - refused


def threshold(rule, state, token: Tensor) -> Tensor:
    """Largest uniform at which a rule accepts, by bisection over its own test."""
    low, high = torch.zeros(len(token), dtype=torch.float64), torch.ones(len(token), dtype=torch.float64)
    for _ in range(50):
        middle = (low + high) / 2
        passed = rule.test(state, token, middle)[0]
        low, high = torch.where(passed, middle, low), torch.where(passed, high, middle)
    return high


def exact_acceptance(case: Case) -> None:
    p, q, most = case.inputs["p"], case.inputs["q"], case.config["K"]
    case.close(1 - (p - q).clamp(min=0).sum(1), "accept.single")
    found: dict[str, list[list[float]]] = {
        name: [] for name in ("rrs_w", "rrs_wo", "kseq", "onehot_topk", "naive_wo", "ot")
    }
    for target, draft in zip(p, q, strict=True):
        rows: dict[str, list[float]] = {name: [] for name in found}
        for k in range(1, most + 1):
            tuples = torch.tensor(list(product(range(len(target)), repeat=k)))
            chance = draft[tuples].prod(1)
            rows["rrs_w"].append(float((chance * acceptance(RecursiveRejection(True), target, draft, tuples)).sum()))
            rows["kseq"].append(float((chance * acceptance(KSequential(), target, draft, tuples)).sum()))
            distinct = tuples[torch.tensor([len(set(row)) == k for row in tuples.tolist()])]
            earlier = torch.cat([torch.zeros(len(distinct), 1), draft[distinct].cumsum(1)[:, :-1]], 1)
            ordered = (draft[distinct] / (1 - earlier)).prod(1)
            rows["rrs_wo"].append(
                float((ordered * acceptance(RecursiveRejection(False), target, draft, distinct)).sum())
            )
            rows["naive_wo"].append(float((ordered * target[distinct].sum(1)).sum()))
            best = draft.topk(k).indices[None]
            rows["onehot_topk"].append(float(acceptance(OneHot(), target, draft, best)))
            rows["ot"].append(transport(target, chance, tuples))
        for name, row in rows.items():
            found[name].append(row)
    for name, values in found.items():
        case.close(torch.tensor(values, dtype=torch.float64), f"accept.{name}")


def transport(p: Tensor, chance: Tensor, tuples: Tensor) -> float:
    """Largest acceptance of any rule for independent candidates: the optimal transport with membership cost."""
    from scipy.optimize import linprog

    many, size = len(tuples), len(p)
    hit = np.zeros((many, size))
    hit[np.arange(many)[:, None], tuples.numpy()] = 1.0
    rows = np.kron(np.eye(many), np.ones(size))
    columns = np.kron(np.ones(many), np.eye(size))
    plan = linprog(
        -hit.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.concatenate([chance.numpy(), p.numpy()]), method="highs"
    )
    return -plan.fun


ADAPTERS = {
    "rrs": rrs,
    "k_seq": k_seq,
    "eagle1_tree": tree,
    "eagle2_tree": tree,
    "exact_acceptance": exact_acceptance,
}
