"""Core context aware attention: pooled groups, who sees what, and the output, at once and as tokens arrive."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.context.core import CoreContext, pool_weights, visible_cores
from vistok.context.interface import Step
from vistok.ops import KVCache

SYSTEM = "cca_attention"
CHUNKS = (1, 7, 1, 1, 16)  # tokens that arrive together, over and over


def forward(case: Case) -> None:
    config = case.config
    q, k, v = (case.inputs[name] for name in "qkv")
    group, window, count, length = config["group_size"], config["window_size"], config["num_core"], q.shape[2]
    policy = CoreContext(group, window, heads="query")
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    if count:
        last = q[:, :, group - 1 :: group][:, :, :count]
        case.close(pool_weights(last, k[:, :, : count * group].unflatten(2, (count, group))), "pool_weights")
        cores = policy.cores(q, k, v, 0, 0, None)
        case.close(cores[0][:, :, :count], "core_k")
        case.close(cores[1][:, :, :count], "core_v")
        case.equal(visible_cores(0, length, count, (0, length), group, window), "mask")
    case.close(policy.whole(q, k, v), "o")
    case.close(stream(policy, q, k, v), "o")


def stream(policy: CoreContext, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same through the cache, in chunks."""
    cache, parts, first = KVCache(1, len(q), 1, k.shape[1], q.shape[3]), [], 0
    tokens = torch.zeros(len(q), dtype=torch.long)
    while first < q.shape[2]:
        new = min(CHUNKS[len(parts) % len(CHUNKS)], q.shape[2] - first)
        step = Step(cache, new, tokens=tokens + first)
        parts.append(policy.attend(step, 0, *(x[:, :, first : first + new] for x in (q, k, v)), None))
        first += new
    return torch.cat(parts, 2)


ADAPTERS = {"forward": forward, "forward_short": forward}
