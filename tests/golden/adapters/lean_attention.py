"""LeanAttention: stream-K partition of the key tiles, partial attention over key splits, and their merge."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.ops.split_kv import merge_partials, partial_attention, stream_k_partition

SYSTEM = "lean_attention"


def partition(case: Case) -> None:
    table = stream_k_partition(case.inputs["tiles_per_output"], int(case.inputs["grid"]))
    case.equal(table.start, "cta_start")
    case.equal(table.end, "cta_end")
    case.equal(table.segments, "segments")


def split_merge(case: Case) -> None:
    inputs, config = case.inputs, case.config
    q = inputs["q"].transpose(1, 2)  # [B, Hq, T, D]
    queries = q.shape[2]
    offsets = inputs["cu_seqlens"].tolist()
    splits = list(zip(*(inputs[f"split_{name}"].tolist() for name in ("req", "start", "end")), strict=True))
    parts = []
    for request, start, end in splits:
        first, length = offsets[request], offsets[request + 1] - offsets[request]
        k, v = (inputs[name][first + start : first + end].transpose(0, 1)[None] for name in "kv")
        visible = None
        if config.get("causal"):
            visible = torch.arange(start, end) <= length - queries + torch.arange(queries)[:, None]
        parts.append(partial_attention(q[request : request + 1], k, v, visible))
    case.close(torch.cat([out.transpose(1, 2) for out, _ in parts]), "partial_o")
    case.close(torch.cat([lse.transpose(1, 2) for _, lse in parts]), "partial_lse")
    merged = []
    for request in range(len(q)):
        own = [part for part, split in zip(parts, splits, strict=True) if split[0] == request]
        merged.append(merge_partials(*(torch.stack(tensors) for tensors in zip(*own, strict=True))))
    case.close(torch.cat([out.transpose(1, 2) for out, _ in merged]), "o")
    case.close(torch.cat([lse.transpose(1, 2) for _, lse in merged]), "lse")


ADAPTERS = {"partition": partition, "split_merge": split_merge}
