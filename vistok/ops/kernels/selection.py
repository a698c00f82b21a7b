"""Sparse reads of a KV cache in Triton: attention over gathered rows, and TokenSelect's vote.

Chosen rows are read where they lie, without a gathered copy. Their list is cut into pieces so that one sequence fills a
GPU, and partial results are merged by :func:`vistok.ops.split_kv.merge_partials`. The vote reads every key once: scores
go to scratch memory, since they are smaller than the keys, until each head's log-sum-exp is known.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vistok.ops.split_kv import merge_partials


@triton.jit
def _gathered_kernel(
    q, k, v, index, visible, out, lse, scale, chosen, piece, heads,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_ib, stride_ih, stride_im, stride_mb, stride_mh, stride_mt, stride_mm,
    T: tl.constexpr, G: tl.constexpr, SHARE: tl.constexpr, D: tl.constexpr, HAS_VISIBLE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program, block, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    b = (program // heads).to(tl.int64)
    head = program % heads  # a group of G query heads that share their choice
    row = block * BLOCK_M + tl.arange(0, BLOCK_M)  # row g * T + t
    t = row % T
    real = row < T * G
    d = tl.arange(0, BLOCK_D)
    q_at = q + b * stride_qb + (head * G + row // T)[:, None] * stride_qh + t[:, None] * stride_qt + d[None, :]
    queries = tl.load(q_at, mask=real[:, None] & (d[None, :] < D), other=0.0)
    k_base = k + b * stride_kb + (head // SHARE) * stride_kh
    v_base = v + b * stride_vb + (head // SHARE) * stride_vh
    index_base = index + b * stride_ib + head * stride_ih
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    stop = tl.minimum((part + 1) * piece, chosen)
    for start in range(part * piece, stop, BLOCK_N):
        m = start + tl.arange(0, BLOCK_N)
        loaded = m < stop
        at = tl.load(index_base + m.to(tl.int64) * stride_im, mask=loaded, other=0)
        keys = tl.load(
            k_base + at[None, :] * stride_ks + d[:, None], mask=loaded[None, :] & (d[:, None] < D), other=0.0
        )
        scores = tl.dot(queries, keys, input_precision="ieee") * scale
        seen = real[:, None] & loaded[None, :]
        if HAS_VISIBLE:
            bits = visible + b * stride_mb + head * stride_mh + t[:, None] * stride_mt + m[None, :] * stride_mm
            seen = seen & (tl.load(bits, mask=seen, other=0) != 0)
        scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp(scores - shift[:, None])
        keep = tl.exp(top - shift)
        values = tl.load(
            v_base + at[:, None] * stride_vs + d[None, :], mask=loaded[:, None] & (d[None, :] < D), other=0.0
        )
        acc = acc * keep[:, None] + tl.dot(weights.to(values.dtype), values, input_precision="ieee")
        weight = weight * keep + tl.sum(weights, 1)
        top = new_top
    output = ((part * tl.num_programs(0) + program) * G * T + row).to(tl.int64)
    result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
    tl.store(out + output[:, None] * D + d[None, :], result, mask=real[:, None] & (d[None, :] < D))
    tl.store(lse + output, tl.where(weight > 0, top + tl.log(weight), float("-inf")), mask=real)


@triton.jit
def _scores_kernel(
    q, k, visible, scores, lse, scale, rows, heads, stride_qb, stride_qh, stride_kb, stride_kh, stride_ks, stride_mb,
    G: tl.constexpr, D: tl.constexpr, MODULO: tl.constexpr, HAS_VISIBLE: tl.constexpr,
    BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    program, block = tl.program_id(0), tl.program_id(1)
    b = (program // heads).to(tl.int64)
    head = program % heads
    g = tl.arange(0, BLOCK_G)
    d = tl.arange(0, BLOCK_D)
    n = block * BLOCK_N + tl.arange(0, BLOCK_N)
    if MODULO:
        query_head = g * heads + head
    else:
        query_head = head * G + g
    queries = tl.load(
        q + b * stride_qb + query_head[:, None] * stride_qh + d[None, :],
        mask=(g < G)[:, None] & (d < D)[None, :], other=0.0,
    )  # fmt: skip
    keys = tl.load(
        k + b * stride_kb + head * stride_kh + n[None, :].to(tl.int64) * stride_ks + d[:, None],
        mask=(n < rows)[None, :] & (d < D)[:, None], other=0.0,
    )  # fmt: skip
    seen = n < rows
    if HAS_VISIBLE:
        seen = seen & (tl.load(visible + b * stride_mb + n, mask=seen, other=0) != 0)
    found = tl.dot(queries, keys, input_precision="ieee") * scale
    found = tl.where(seen[None, :], found, float("-inf"))
    top = tl.max(found, 1)
    shift = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.sum(tl.exp(found - shift[:, None]), 1)
    output = b * heads * G + query_head
    tl.store(scores + output[:, None] * rows + n[None, :], found, mask=(g < G)[:, None] & (n < rows)[None, :])
    log_sum = tl.where(weight > 0, shift + tl.log(weight), float("-inf"))
    tl.store(lse + output * tl.num_programs(1) + block, log_sum, mask=g < G)


@triton.jit
def _votes_kernel(scores, lse, votes, rows, HEADS: tl.constexpr, BLOCK_N: tl.constexpr):
    b = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    for head in range(HEADS):
        found = tl.load(scores + (b * HEADS + head) * rows + n, mask=n < rows, other=float("-inf"))
        log_sum = tl.load(lse + b * HEADS + head)
        total += tl.where(found == float("-inf"), 0.0, tl.exp(found - log_sum))
    tl.store(votes + b * rows + n, total, mask=n < rows)


def _key_block(dim: int, item_bytes: int) -> tuple[int, int]:
    """Keys of a tile of at most 16 KiB, and features padded to a power of two."""
    block_d = max(16, triton.next_power_of_2(dim))
    return max(16, min(128, 16384 // (block_d * item_bytes))), block_d


def _pieces(device: torch.device, programs: int, tiles: int) -> int:
    """How many pieces of a list of rows keep all processors busy; a few under the interpreter, so that they meet."""
    wanted = 3
    if device.type == "cuda":
        wanted = triton.cdiv(2 * torch.cuda.get_device_properties(device).multi_processor_count, programs)
    return max(1, min(wanted, tiles))


def _contiguous_rows(*tensors: Tensor) -> list[Tensor]:
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, visible: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Triton twin of :func:`vistok.ops.selection.gathered_attention`; features of a row must be contiguous."""
    batch, query_heads, queries, dim = q.shape
    heads = query_heads if index.shape[1] == query_heads else k.shape[1]  # groups that share a choice
    group, chosen = query_heads // heads, index.shape[2]
    q, k, v = _contiguous_rows(q, k, v)
    index = index.expand(batch, heads, chosen)
    bits, mask_strides = None, (0, 0, 0, 0)
    if visible is not None:
        bits = visible.expand(batch, -1, -1, -1)
        if bits.shape[1] not in (1, heads):  # by key/value head, while every query head chooses
            bits = bits.repeat_interleave(heads // bits.shape[1], 1)
        bits = bits.expand(batch, heads, queries, chosen).view(torch.int8)
        mask_strides = bits.stride()
    block_n, block_d = _key_block(dim, k.element_size())
    block_m = min(64, max(16, triton.next_power_of_2(queries * group)))
    blocks = triton.cdiv(queries * group, block_m)
    tiles = max(1, triton.cdiv(chosen, block_n))
    pieces = _pieces(q.device, batch * heads * blocks, tiles)
    piece = triton.cdiv(tiles, pieces) * block_n
    pieces = max(1, triton.cdiv(chosen, piece))
    out = torch.empty(pieces, batch, query_heads, queries, dim, dtype=torch.float32, device=q.device)
    lse = torch.empty(pieces, batch, query_heads, queries, dtype=torch.float32, device=q.device)
    _gathered_kernel[(batch * heads, blocks, pieces)](
        q, k, v, index, bits, out, lse, dim**-0.5 if scale is None else scale, chosen, piece, heads,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *index.stride(), *mask_strides,
        T=queries, G=group, SHARE=heads // k.shape[1], D=dim, HAS_VISIBLE=bits is not None,
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip
    return (out[0] if pieces == 1 else merge_partials(out, lse)[0]).to(q.dtype)


def vote_rows(
    q: Tensor, k: Tensor, visible: Tensor | None = None, *, scale: float = 1.0, modulo: bool = False
) -> Tensor:
    """Triton twin of :func:`vistok.ops.selection.vote_rows`; features of a row must be contiguous."""
    batch, query_heads, dim = q.shape
    heads, rows = k.shape[1:3]
    group = query_heads // heads
    q, k = _contiguous_rows(q, k)
    block_n, block_d = _key_block(dim, k.element_size())
    blocks = max(1, triton.cdiv(rows, block_n))
    scores = torch.empty(batch, query_heads, rows, dtype=torch.float32, device=q.device)
    lse = torch.empty(batch, query_heads, blocks, dtype=torch.float32, device=q.device)
    votes = torch.empty(batch, rows, dtype=torch.float32, device=q.device)
    bits = None if visible is None else visible.expand(batch, rows).contiguous().view(torch.int8)
    _scores_kernel[(batch * heads, blocks)](
        q, k, bits, scores, lse, scale, rows, heads, *q.stride()[:2], *k.stride()[:3], rows,
        G=group, D=dim, MODULO=modulo, HAS_VISIBLE=bits is not None,
        BLOCK_G=max(16, triton.next_power_of_2(group)), BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip
    _votes_kernel[(batch, triton.cdiv(rows, 1024))](
        scores, lse.logsumexp(-1), votes, rows, HEADS=query_heads, BLOCK_N=1024, num_warps=4
    )
    return votes
