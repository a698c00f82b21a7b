"""Split-KV decode and tree attention in Triton: stream-K partial results, then a merge.

The key tiles of all (query block, kv head, sequence) outputs lie on one line, sequences innermost; each program walks
an equal run of it (LeanAttention, arXiv 2405.10480) and leaves one partial result for each output that it touches. As
a new piece starts with a new program, a new output, or both, ``program + output`` is a slot of its own. All offsets
are derived on the device from the sequences' lengths, so a launch needs no host sync and can be captured in a graph.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vistok.ops.tree import TreeMask


@triton.jit
def _run_start(program, most, full):
    """First tile of a program: the first `full` programs take `most` tiles each, the others one fewer."""
    return tl.where(program < full, program * most, full * most + (program - full) * (most - 1))


@triton.jit
def _partial_kernel(
    q, k, v, prefix, words, bias, tiles_before, out, lse, part_out, part_lse,
    scale, nodes, batch, workers,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    T: tl.constexpr, G: tl.constexpr, H: tl.constexpr, D: tl.constexpr, WORDS: tl.constexpr, B2: tl.constexpr,
    M_BLOCKS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    line = tl.load(tiles_before + batch)  # tiles of all sequences, for one kv head and query block
    total = line * H * M_BLOCKS
    used = tl.minimum(workers, total)
    most = tl.cdiv(total, tl.maximum(used, 1))
    full = total - (most - 1) * used
    tile = _run_start(program, most, full)
    stop = tl.where(program < used, _run_start(program + 1, most, full), tile)
    stop = tl.minimum(stop, total)

    sequences = tl.arange(0, B2)
    ends = tl.load(tiles_before + 1 + sequences, mask=sequences < batch, other=2147483647)
    d = tl.arange(0, BLOCK_D)
    while tile < stop:
        head = (tile // line) % H
        block = tile // line // H
        b = tl.sum((ends <= tile % line).to(tl.int32), 0)
        output = (block * H + head) * batch + b
        origin = (block * H + head) * line + tl.load(tiles_before + b)
        output_end = (block * H + head) * line + tl.load(tiles_before + b + 1)
        segment_end = tl.minimum(stop, output_end)

        before = tl.load(prefix + b).to(tl.int32)
        row = block * BLOCK_M + tl.arange(0, BLOCK_M)  # row g * T + t of the T * G queries of this kv head
        t = row % T
        query_head = head * G + row // T
        real = row < T * G
        q_at = q + b.to(tl.int64) * stride_qb + query_head[:, None] * stride_qh + t[:, None] * stride_qt + d[None, :]
        queries = tl.load(q_at, mask=real[:, None] & (d[None, :] < D), other=0.0)
        alive = real
        if WORDS > 0:
            own = tl.zeros([BLOCK_M], tl.int64)
            for w in tl.static_range(WORDS):
                own |= tl.load(words + (b * T + t) * WORDS + w, mask=real, other=0)
            alive = real & (own != 0)

        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        weight = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        k_base = k + b.to(tl.int64) * stride_kb + head * stride_kh
        v_base = v + b.to(tl.int64) * stride_vb + head * stride_vh
        for current in range(tile, segment_end):
            start = (current - origin) * BLOCK_N
            n = start + tl.arange(0, BLOCK_N)
            loaded = n < before + nodes
            keys = tl.load(
                k_base + n[None, :].to(tl.int64) * stride_ks + d[:, None],
                mask=loaded[None, :] & (d[:, None] < D), other=0.0,
            )  # fmt: skip
            scores = tl.dot(queries, keys, input_precision="ieee") * scale
            if HAS_BIAS:
                scores += tl.where(n == 0, tl.load(bias + b), 0.0)[None, :]
            visible = alive[:, None] & (n < before)[None, :]
            if start + BLOCK_N > before:  # only here does the draft begin
                node = n - before
                if WORDS > 0:
                    inside = (node >= 0) & (node < nodes)
                    word = tl.load(
                        words + (b * T + t[:, None]) * WORDS + node[None, :] // 64,
                        mask=real[:, None] & inside[None, :], other=0,
                    )  # fmt: skip
                    visible |= inside[None, :] & (((word >> (node[None, :] % 64).to(tl.int64)) & 1) != 0)
                else:
                    visible |= alive[:, None] & (node[None, :] <= t[:, None]) & loaded[None, :]
            scores = tl.where(visible, scores, float("-inf"))
            new_top = tl.maximum(top, tl.max(scores, 1))
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            p = tl.exp(scores - shift[:, None])
            keep = tl.exp(top - shift)
            seen = tl.max(visible.to(tl.int32), 0) > 0  # a row that nobody sees may hold NaN
            values = tl.load(
                v_base + n[:, None].to(tl.int64) * stride_vs + d[None, :],
                mask=seen[:, None] & (d[None, :] < D), other=0.0,
            )  # fmt: skip
            weight = weight * keep + tl.sum(p, 1)
            acc = acc * keep[:, None] + tl.dot(p.to(values.dtype), values, input_precision="ieee")
            top = new_top

        result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
        log_sum = tl.where(weight > 0, top + tl.log(weight), float("-inf"))
        index = (b * H * G + query_head) * T + t
        if tile == origin and segment_end == output_end:
            at = index[:, None].to(tl.int64) * D + d[None, :]
            tl.store(out + at, result.to(out.dtype.element_ty), mask=real[:, None] & (d[None, :] < D))
            tl.store(lse + index, log_sum, mask=real)
        else:
            slot = (program + output).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
            tl.store(part_out + slot[:, None] * BLOCK_D + d[None, :], result)
            tl.store(part_lse + slot, log_sum)
        tile = segment_end


@triton.jit
def _merge_kernel(
    tiles_before, out, lse, part_out, part_lse, batch, workers,
    T: tl.constexpr, G: tl.constexpr, H: tl.constexpr, D: tl.constexpr, M_BLOCKS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0)
    b = output % batch
    head = output // batch % H
    block = output // batch // H
    line = tl.load(tiles_before + batch)
    total = line * H * M_BLOCKS
    used = tl.minimum(workers, total)
    most = tl.cdiv(total, tl.maximum(used, 1))
    full = total - (most - 1) * used
    first = (block * H + head) * line + tl.load(tiles_before + b)
    last = (block * H + head) * line + tl.load(tiles_before + b + 1) - 1
    # The program that owns a tile; `most` may be 1, then all programs are full.
    few = tl.maximum(most - 1, 1)
    one = tl.where(first < full * most, first // most, full + (first - full * most) // few)
    two = tl.where(last < full * most, last // most, full + (last - full * most) // few)
    if two > one:
        m = tl.arange(0, BLOCK_M)
        d = tl.arange(0, BLOCK_D)
        top = tl.full([BLOCK_M], float("-inf"), tl.float32)
        weight = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        for program in range(one, two + 1):
            slot = (program + output).to(tl.int64) * BLOCK_M + m
            log_sum = tl.load(part_lse + slot)
            new_top = tl.maximum(top, log_sum)
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            keep = tl.exp(top - shift)
            add = tl.exp(log_sum - shift)
            weight = weight * keep + add
            part = tl.load(part_out + slot[:, None] * BLOCK_D + d[None, :])
            acc = acc * keep[:, None] + part * add[:, None]
            top = new_top
        row = block * BLOCK_M + m
        index = (b * H * G + head * G + row // T) * T + row % T
        real = row < T * G
        result = acc / tl.where(weight > 0, weight, 1.0)[:, None]
        at = index[:, None].to(tl.int64) * D + d[None, :]
        tl.store(out + at, result.to(out.dtype.element_ty), mask=real[:, None] & (d[None, :] < D))
        tl.store(lse + index, tl.where(weight > 0, top + tl.log(weight), float("-inf")), mask=real)


def _blocks(rows: int, dim: int, item_bytes: int) -> tuple[int, int, int, int]:
    """Query rows, keys and features of a tile, and warps.

    A tile of keys takes 16 KiB, so three stages of keys and values fit into shared memory at any head dim and dtype.
    """
    block_d = max(16, triton.next_power_of_2(dim))
    block_m = min(64, max(16, triton.next_power_of_2(rows)))
    block_n = max(16, min(128, 16384 // (block_d * item_bytes)))
    return block_m, block_n, block_d, 4 if block_m <= 32 else 8


def _workers(device: torch.device) -> int:
    """Two programs for each processor; under the interpreter a few, so that pieces meet."""
    if device.type == "cuda":
        return 2 * torch.cuda.get_device_properties(device).multi_processor_count
    return 3


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: TreeMask,
    *,
    first_key_bias: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Triton twin of :func:`vistok.ops.split_kv.decode_attention`; features of a row must be contiguous."""
    batch, heads, queries, dim = q.shape
    kv_heads = k.shape[1]
    group = heads // kv_heads
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    block_m, block_n, block_d, warps = _blocks(queries * group, dim, k.element_size())
    m_blocks = triton.cdiv(queries * group, block_m)
    workers = _workers(q.device)
    out = torch.empty(batch, heads, queries, dim, dtype=q.dtype, device=q.device)
    lse = torch.empty(batch, heads, queries, dtype=torch.float32, device=q.device)
    slots = workers + batch * kv_heads * m_blocks
    part_out = torch.empty(slots, block_m, block_d, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(slots, block_m, dtype=torch.float32, device=q.device)
    tiles = (mask.prefix + mask.nodes + block_n - 1) // block_n
    tiles_before = torch.nn.functional.pad(tiles.cumsum(0), (1, 0)).int()
    shared = {"T": queries, "G": group, "H": kv_heads, "D": dim, "M_BLOCKS": m_blocks}
    shared |= {"BLOCK_M": block_m, "BLOCK_D": block_d, "num_warps": warps}
    _partial_kernel[(workers,)](
        q, k, v, mask.prefix, mask.words, first_key_bias, tiles_before, out, lse, part_out, part_lse,
        dim**-0.5 if scale is None else scale, mask.nodes, batch, workers,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
        WORDS=0 if mask.words is None else mask.words.shape[-1], B2=triton.next_power_of_2(batch),
        BLOCK_N=block_n, HAS_BIAS=first_key_bias is not None, **shared,
    )  # fmt: skip
    _merge_kernel[(batch * kv_heads * m_blocks,)](tiles_before, out, lse, part_out, part_lse, batch, workers, **shared)
    return out, lse
