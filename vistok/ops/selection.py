"""Sparse reads of a KV cache: which rows heads vote for, and attention over gathered rows alone.

The vote is TokenSelect's (arXiv 2411.02886): every query head spreads a softmax over the candidates, and the sum over
heads ranks them. Differs from its kernel, which pairs a query head with key/value head ``h % Hkv`` and so is wrong for
grouped heads: here it is ``h // (Hq // Hkv)`` unless the released pairing is asked for. Sums run in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.ops.attention import attention
from vistok.ops.dispatch import on_triton

HIDDEN = -torch.inf


def vote_rows(
    q: Tensor, k: Tensor, visible: Tensor | None = None, *, scale: float = 1.0, modulo: bool = False
) -> Tensor:
    """Returns the share of attention that every cached row gets, summed over query heads.

    Args:
        q: one query a head, [B, Hq, D].
        k: keys [B, Hkv, S, D].
        visible: which rows are candidates, bool [B or 1, S]; all if None.
        scale: factor of q·k.
        modulo: pair query head h with key/value head ``h % Hkv``, as the released code does.

    Returns:
        float32 (float64 for float64 keys) [B, S]; 0 for rows that are no candidates. Each sequence sums to Hq where it
        has candidates.
    """
    if on_triton(q, k):
        from vistok.ops.kernels.selection import vote_rows as kernel

        return kernel(q, k, visible, scale=scale, modulo=modulo)
    kv_heads = k.shape[1]
    wide = torch.float64 if k.dtype == torch.float64 else torch.float32
    split = (-1, kv_heads) if modulo else (kv_heads, -1)
    grouped = q.to(wide).unflatten(1, split)
    grouped = grouped.transpose(1, 2) if modulo else grouped  # [B, Hkv, G, D]
    scores = (k.to(wide) @ (grouped * scale).mT).mT.contiguous()  # [B, Hkv, G, S]; a product with k.mT copies k
    if visible is not None:
        scores = scores.masked_fill(~visible[:, None, None], HIDDEN)
    weights = scores.softmax(-1)
    return (weights if visible is None else weights.nan_to_num(0.0)).sum((1, 2))


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Returns rows of a cache by head.

    Args:
        x: keys or values [B, H, S, D]; a view of the rows in use of a larger cache costs no copy.
        index: rows of each head, int64 [B, H, M] (or [B, 1, M] for all heads), 0 .. S-1.

    Returns:
        [B, H, M, D].
    """
    batch, heads, _, dim = x.shape
    steps = x.stride()
    if steps[3] != 1 or any(step % dim for step in steps[:3]) or (x.requires_grad and torch.is_grad_enabled()):
        return x.gather(2, index.expand(-1, heads, -1)[..., None].expand(-1, -1, -1, dim))
    # One table of rows for the whole storage: a lookup copies whole rows, where `gather` moves single numbers.
    by_batch, by_head, by_row = (step // dim for step in steps[:3])
    first = torch.arange(batch, device=x.device)[:, None] * by_batch + torch.arange(heads, device=x.device) * by_head
    rows = first[..., None] + index * by_row
    last = (batch - 1) * by_batch + (heads - 1) * by_head + (x.shape[2] - 1) * by_row
    return F.embedding(rows, x.as_strided((last + 1, dim), (dim, 1)))


def gathered_attention(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, visible: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Returns the attention of few queries over chosen rows of a cache; no other row is read.

    Args:
        q: queries [B, Hq, T, D].
        k, v: keys and values [B, Hkv, S, D].
        index: chosen rows, int64 [B, Hs, M]: of each key/value head (Hs = Hkv), of each query head (Hs = Hq), or one
            choice for all (Hs = 1).
        visible: which of them a query sees, bool, broadcastable to [B, Hs, T, M]; all if None.
        scale: factor of q·k, ``D**-0.5`` if None.

    Returns:
        [B, Hq, T, D]. A query that sees no row gets zeros.
    """
    if on_triton(q, k, v):
        from vistok.ops.kernels.selection import gathered_attention as kernel

        return kernel(q, k, v, index, visible, scale=scale)
    heads, kv_heads = q.shape[1], k.shape[1]
    group = heads // kv_heads
    if index.shape[1] == heads != kv_heads:
        k, v = (x[:, :, None].expand(-1, -1, group, -1, -1).flatten(1, 2) for x in (k, v))
    k, v = gather_rows(k, index), gather_rows(v, index)
    if visible is not None and visible.shape[1] == kv_heads != heads:
        visible = visible.repeat_interleave(group, 1)
    return decode(q, k, v, visible, scale)


def decode(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Returns the attention of few queries, where heads that share keys are read as the queries of one head.

    Args and result as :func:`vistok.ops.attention`, ``visible`` broadcastable to [B, Hq, T, S].
    """
    batch, heads, queries, dim = q.shape
    kv_heads = k.shape[1]
    if heads == kv_heads or (queries > 1 and visible is not None and visible.shape[1] > 1):
        return attention(q, k, v, mask=visible, scale=scale)
    if visible is not None and visible.shape[1] == heads:
        visible = visible.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    elif visible is not None:
        visible = visible.expand(-1, -1, queries, -1).repeat(1, 1, heads // kv_heads, 1)
    packed = q.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    return attention(packed, k, v, mask=visible, scale=scale).view(batch, heads, queries, dim)
