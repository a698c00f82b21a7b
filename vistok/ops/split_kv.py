"""Exact attention over split keys: partial results, their merge, and the stream-K split of the work.

LeanAttention (arXiv 2405.10480): softmax over a set of keys is an associative reduction of its subsets, each kept as
(normalised output, log-sum-exp), so the key tiles of all sequences and heads form one line that is cut into equal
pieces, one a processor, however ragged the sequences. Differs from the paper where pieces meet: a second kernel merges
them, nothing waits on a lock, so it also runs under executors that take one program after another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vistok.ops.dispatch import on_triton
from vistok.ops.tree import TreeMask


class Partition(NamedTuple):
    """Key tiles of each worker: ``start[c] .. end[c]`` on the line of all tiles, and its pieces.

    A row of ``segments`` is (worker, output, first tile, end tile, is first of its output, is last of its output),
    tiles counted within the output.
    """

    start: Tensor  # [G]
    end: Tensor  # [G]
    segments: Tensor  # [pieces, 6]


def stream_k_partition(tiles: Tensor, workers: int) -> Partition:
    """Cut the tiles of all outputs into equal runs, at most one tile apart.

    Args:
        tiles: key tiles of each output, int [O], outputs in the order in which they are walked.
        workers: programs that run at once; fewer are used where there are fewer tiles.

    Returns:
        int64 tables of the G = min(workers, total) workers.
    """
    ends = tiles.long().cumsum(0)
    total = int(ends[-1]) if len(tiles) else 0
    used = min(workers, total)
    if used == 0:
        empty = ends.new_zeros(0)
        return Partition(empty, empty, ends.new_zeros(0, 6))
    most = -(-total // used)
    full = total - (most - 1) * used  # workers with `most` tiles; the rest have one fewer
    start = torch.arange(used, device=tiles.device)
    start = torch.where(start < full, start * most, full * most + (start - full) * (most - 1))
    end = torch.cat([start[1:], ends[-1:]])
    cuts = torch.unique(torch.cat([start, ends - tiles]))
    cuts = cuts[cuts < total]
    stops = torch.cat([cuts[1:], ends[-1:]])
    worker = torch.searchsorted(start, cuts, right=True) - 1
    output = torch.searchsorted(ends, cuts, right=True)
    base = (ends - tiles)[output]
    first, last = cuts == base, stops == ends[output]
    return Partition(start, end, torch.stack([worker, output, cuts - base, stops - base, first, last], dim=1))


def partial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None = None,
    *,
    first_key_bias: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention over some of the keys, with what a merge needs.

    Args:
        q: queries [B, Hq, T, D].
        k: keys [B, Hkv, S, D]; S may be 0.
        v: values [B, Hkv, S, D].
        visible: bool, broadcastable to [B, T, S]; all keys if None. Rows that nobody sees may hold anything.
        first_key_bias: added to every query's score of key 0, [B].
        scale: factor of q·k, ``D**-0.5`` if None.

    Returns:
        Output [B, Hq, T, D] in q's dtype and natural-log LSE [B, Hq, T] in float32 (float64 stays float64). A query
        that sees nothing gets 0 and -inf.
    """
    batch, _, queries, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    accumulate = torch.float64 if q.dtype == torch.float64 else torch.float32
    grouped = q.to(accumulate).unflatten(1, (kv_heads, -1)) * (dim**-0.5 if scale is None else scale)
    k, v = k.to(accumulate), v.to(accumulate)
    if visible is not None:
        visible = visible.expand(batch, queries, keys)
        v = v.masked_fill(~visible.any(1)[:, None, :, None], 0)
    scores = grouped @ k[:, :, None].mT  # [B, Hkv, G, T, S]
    if first_key_bias is not None:
        scores[..., 0] += first_key_bias.to(accumulate)[:, None, None, None]
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp(min=torch.finfo(accumulate).min) if keys else scores.new_zeros(())
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    out = weights @ v[:, :, None] / total.clamp(min=torch.finfo(accumulate).tiny)
    lse = (total.log() + top).squeeze(-1)
    return out.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)


def merge_partials(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over a union of disjoint key sets from the attention over each.

    Args:
        out: normalised outputs [P, ..., D].
        lse: natural-log LSE [P, ...]; -inf marks an empty part.

    Returns:
        Output [..., D] and LSE [...]; 0 and -inf where all parts are empty.
    """
    total = lse.logsumexp(0)
    weight = (lse - total.masked_fill(total.isneginf(), 0)).exp().to(out.dtype)
    return (out * weight[..., None]).sum(0), total


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: TreeMask,
    *,
    first_key_bias: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Few queries over a long ragged cache: plain decode, chains and trees, with the LSE.

    Args:
        q: queries [B, Hq, T, D].
        k: keys [B, Hkv, S, D]; rows behind ``prefix + nodes`` are not read.
        v: values [B, Hkv, S, D].
        mask: prefix lengths and draft bits.
        first_key_bias: added to every query's score of key 0, [B].
        scale: factor of q·k, ``D**-0.5`` if None.

    Returns:
        Output [B, Hq, T, D] and natural-log LSE [B, Hq, T]; 0 and -inf for padding queries.
    """
    if on_triton(q):
        from vistok.ops.kernels.attention import decode_attention as kernel

        return kernel(q, k, v, mask, first_key_bias=first_key_bias, scale=scale)
    return partial_attention(q, k, v, mask.dense(k.shape[2]), first_key_bias=first_key_bias, scale=scale)
