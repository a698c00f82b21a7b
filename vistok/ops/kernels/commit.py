"""Commit of an accepted path in Triton: one launch moves the keys and values of all layers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _commit_kernel(
    keys, values, lengths, path, count, batch, heads,
    stride_l, stride_b, stride_h, stride_s,
    M: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    h = (program % heads).to(tl.int64)
    b = (program // heads % batch).to(tl.int64)
    layer = (program // heads // batch).to(tl.int64)
    base = layer * stride_l + b * stride_b + h * stride_h + tl.load(lengths + b) * stride_s
    step = tl.arange(0, BLOCK_M)
    kept = step < tl.load(count + b)
    node = tl.load(path + b * M + step, mask=kept & (step < M), other=0)
    d = tl.arange(0, BLOCK_D)
    mask = kept[:, None] & (d < D)[None, :]
    source = base + node[:, None] * stride_s + d[None, :]
    target = base + step[:, None].to(tl.int64) * stride_s + d[None, :]
    key = tl.load(keys + source, mask=mask)
    value = tl.load(values + source, mask=mask)
    tl.debug_barrier()  # every row is in registers before the first is overwritten
    tl.store(keys + target, key, mask=mask)
    tl.store(values + target, value, mask=mask)


def commit_rows(keys: Tensor, values: Tensor, lengths: Tensor, path: Tensor, count: Tensor) -> None:
    """Triton twin of :func:`vistok.ops.cache.commit_rows`; keys and values share their strides."""
    layers, batch, heads, _, dim = keys.shape
    steps = path.shape[1]
    _commit_kernel[(layers * batch * heads,)](
        keys, values, lengths, path.contiguous(), count, batch, heads, *keys.stride()[:4],
        M=steps, D=dim, BLOCK_M=triton.next_power_of_2(steps), BLOCK_D=triton.next_power_of_2(dim), num_warps=4,
    )  # fmt: skip
