"""Softmax attention as models call it: one function, the fastest exact route for the device, dtype and shape.

Layout of the whole package: queries [B, Hq, T, D], keys and values [B, Hkv, S, D] (the cache's own), query head h
reads key/value head ``h // (Hq // Hkv)``. Causal means bottom-right: query t sees key j iff ``j <= S - T + t``.
Which route runs when, with the measurements that decided it: docs/ops.md.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops.dispatch import on_triton
from vistok.ops.split_kv import decode_attention
from vistok.ops.tree import TreeMask

SHORT = 512  # keys up to which the CPU's flash kernel trains faster in float32 than in half precision


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | TreeMask | None = None,
    causal: bool = False,
    first_key_bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of T queries over S keys.

    ``first_key_bias`` is what a collapsed conditioning prefix needs: LlamaGen's zero-rotated prefix of L visible
    tokens is exactly one key at row 0 with k = 0, v = mean of the prefix's v, and logit log L (see
    :func:`collapse_prefix`).

    Args:
        q: queries [B, Hq, T, D].
        k: keys [B, Hkv, S, D], Hq a multiple of Hkv.
        v: values [B, Hkv, S, D].
        mask: bool (True may attend) or additive float, broadcastable to [B, Hq, T, S]; or a :class:`TreeMask` for
            drafts and ragged sequences over a cache, which says everything that ``causal`` would.
        causal: hide keys after the query, bottom-right aligned; combines with a tensor mask.
        first_key_bias: added to every query's score of key 0, [B].
        scale: factor of q·k, ``D**-0.5`` if None.
        dropout: share of weights that are dropped, in training; not with a :class:`TreeMask`.

    Returns:
        [B, Hq, T, D]. A query that sees no key gets zeros.

    Raises:
        VistokError: if Hq is not a multiple of Hkv.
    """
    heads, kv_heads, queries, keys = q.shape[1], k.shape[1], q.shape[2], k.shape[2]
    if heads % kv_heads:
        raise VistokError(f"{heads} query heads cannot share {kv_heads} key/value heads: use a multiple of them.")
    if isinstance(mask, TreeMask):
        return _tree(q, k, v, mask, first_key_bias, scale)
    whole = queries == keys and mask is None and first_key_bias is None
    if causal and queries > 1 and not whole:
        visible = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
        mask = visible if mask is None else _both(mask, visible)
    if first_key_bias is not None:
        mask = _with_bias(mask, first_key_bias, q, keys)
    return _softmax_attention(q, k, v, mask, causal and whole, scale, dropout)


def collapse_prefix(values: Tensor, visible: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One key/value row that stands for a whole prefix of zero keys, exactly.

    A zero key scores 0 against every query, so L visible prefix tokens weigh as one key of logit log L whose value
    is their mean.

    Args:
        values: prefix values [..., B, H, L, D], e.g. of all layers.
        visible: which prefix tokens later queries may see, bool [B, L], at least one a sequence; all if None.

    Returns:
        The mean value [..., B, H, 1, D] (its key is zero) and the ``first_key_bias`` log L [B], float32.
    """
    batch, _, length, _ = values.shape[-4:]
    if visible is None:
        visible = torch.ones(batch, length, dtype=torch.bool, device=values.device)
    count = visible.sum(-1)
    weight = (visible / count[:, None])[:, None, :, None]
    mean = (values.float() * weight).sum(-2, keepdim=True)
    return mean.to(values.dtype), count.float().log()


def _tree(
    q: Tensor, k: Tensor, v: Tensor, mask: TreeMask, first_key_bias: Tensor | None, scale: float | None
) -> Tensor:
    """Drafts over a cache: the split-KV kernel on a GPU; elsewhere SDPA over the rows in use, and no others."""
    if on_triton(q, k, v):
        return decode_attention(q, k, v, mask, first_key_bias=first_key_bias, scale=scale)[0]
    if mask.batched is not None:
        rows, visible = mask.batched
        if rows < k.shape[2]:
            k, v = k[:, :, :rows], v[:, :, :rows]
        if first_key_bias is not None:
            visible = _with_bias(visible, first_key_bias, q, rows)
        return _softmax_attention(q, k, v, visible, False, scale)
    parts = []
    for b, (rows, visible) in enumerate(mask.sequences):
        one = slice(b, b + 1)
        if first_key_bias is not None:
            visible = _with_bias(visible, first_key_bias[one], q, rows)
        parts.append(_softmax_attention(q[one], k[one, :, :rows], v[one, :, :rows], visible, False, scale))
    return torch.cat(parts)


def _softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float | None,
    dropout: float = 0.0,
) -> Tensor:
    """SDPA, or what is faster than it on a CPU; causal only where queries and keys are equally many."""
    queries, keys = q.shape[2], k.shape[2]
    if keys == 0:
        return torch.zeros_like(q)
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        if queries == 1 and not dropout:
            return _one_query(q, k, v, mask, q.shape[-1] ** -0.5 if scale is None else scale)
        if keys <= SHORT and torch.is_grad_enabled() and q.requires_grad:
            with torch.autocast("cpu", enabled=False):
                exact = _softmax_attention(q.float(), k.float(), v.float(), mask, is_causal, scale, dropout)
            return exact.to(q.dtype)
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(q.dtype)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=is_causal and queries > 1,
        scale=scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _with_bias(mask: Tensor | None, first_key_bias: Tensor, q: Tensor, keys: int) -> Tensor:
    """The mask with a bias on key 0, additive; keys may be 0."""
    bias = q.new_zeros(len(first_key_bias), 1, 1, keys)
    bias[..., :1] = first_key_bias.to(q.dtype)[:, None, None, None]
    return bias if mask is None else _both(mask, bias)


def _both(mask: Tensor, other: Tensor) -> Tensor:
    """Two masks in one: both boolean, or additive as soon as one is."""
    if mask.dtype == other.dtype == torch.bool:
        return mask & other
    if mask.dtype == torch.bool:
        mask, other = other, mask
    if other.dtype == torch.bool:
        return mask.masked_fill(~other, -torch.inf)
    return mask + other


def _one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Queries [B, Hq, 1, D] in half precision by two plain products, which beat the CPU's flash kernel."""
    grouped = q.unflatten(1, (k.shape[1], -1)).squeeze(3)  # [B, Hkv, Hq / Hkv, D]
    # The rows in use of a cache have gaps between heads: a product with `k.mT` copies them slowly, one with `k` fast.
    scores = (k @ grouped.mT).mT.float() * scale
    if mask is not None:
        mask = mask.expand(len(q), q.shape[1], 1, -1).reshape(scores.shape)
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1).nan_to_num(0.0).to(v.dtype)
    return (weights @ v).view(q.shape)
