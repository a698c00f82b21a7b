"""Rotation of queries and keys in Triton, with an optional gather of rows (re-encoding of a cache)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _rotate_kernel(
    x, source, table, out, rows, inner,
    stride_xa, stride_xb, stride_xr, stride_ta, stride_oa, stride_ob, stride_or,
    PAIRS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, GATHER: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_REST: tl.constexpr,
):  # fmt: skip
    outer = tl.program_id(0)
    a = (outer // inner).to(tl.int64)
    b = (outer % inner).to(tl.int64)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    real = r < rows
    from_row = r.to(tl.int64)
    if GATHER:
        from_row = tl.load(source + r, mask=real, other=0)
    x_row = x + a * stride_xa + b * stride_xb + from_row[:, None] * stride_xr
    out_row = out + a * stride_oa + b * stride_ob + r[:, None].to(tl.int64) * stride_or
    pair = tl.arange(0, BLOCK_P)
    inside = real[:, None] & (pair < PAIRS)[None, :]
    first = pair if HALF else 2 * pair
    second = pair + PAIRS if HALF else 2 * pair + 1
    angle = table + a * stride_ta + (r[:, None].to(tl.int64) * PAIRS + pair[None, :]) * 2
    cos = tl.load(angle, mask=inside, other=0.0)
    sin = tl.load(angle + 1, mask=inside, other=0.0)
    one = tl.load(x_row + first[None, :], mask=inside, other=0.0).to(tl.float32)
    two = tl.load(x_row + second[None, :], mask=inside, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out_row + first[None, :], (one * cos - two * sin).to(kind), mask=inside)
    tl.store(out_row + second[None, :], (two * cos + one * sin).to(kind), mask=inside)
    if D > 2 * PAIRS:
        column = 2 * PAIRS + tl.arange(0, BLOCK_REST)
        rest = real[:, None] & (column < D)[None, :]
        tl.store(out_row + column[None, :], tl.load(x_row + column[None, :], mask=rest, other=0.0), mask=rest)


def rotate_rows(x: Tensor, table: Tensor, source: Tensor | None, half: bool) -> Tensor:
    """Rotate rows of x, or the gathered rows ``source`` of x.

    Args:
        x: [A, B, R, D], features contiguous.
        table: (cos, sin) float32 [n, P, 2] or [A, n, P, 2], contiguous; n = R without ``source``.
        source: rows to gather, int64 [n].
        half: pairs (j, j + P) instead of (2j, 2j + 1).

    Returns:
        [A, B, n, D].
    """
    outer, inner, _, dim = x.shape
    rows, pairs = table.shape[-3:-1]
    out = torch.empty(outer, inner, rows, dim, dtype=x.dtype, device=x.device)
    block_p = triton.next_power_of_2(pairs)
    block_r = max(1, min(triton.next_power_of_2(rows), 2048 // block_p))
    _rotate_kernel[(outer * inner, triton.cdiv(rows, block_r))](
        x, source, table, out, rows, inner, *x.stride()[:3],
        table.stride(0) if table.dim() == 4 else 0, *out.stride()[:3],
        PAIRS=pairs, D=dim, HALF=half, GATHER=source is not None, BLOCK_R=block_r, BLOCK_P=block_p,
        BLOCK_REST=triton.next_power_of_2(max(dim - 2 * pairs, 1)), num_warps=4,
    )  # fmt: skip
    return out
