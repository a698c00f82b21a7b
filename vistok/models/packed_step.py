"""A decode step of a LlamaGen on a CPU: one new token a sequence, or the few of a draft, with packed weights.

Products are four fifths of a step of GPT-B, and most of the rest are some 60 small operations a layer in
``LlamaGen.decode``. Here they are some 20, with the same bits in float32: the stream is padded once to the least rows
of a packed product, queries turn in place, keys and values go straight to their rows of the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.ops.linear import PackedLinear, joint, least_rows

if TYPE_CHECKING:
    from vistok.models.llamagen import DecodeState, LlamaGen


def applies(model: LlamaGen) -> bool:
    """Whether ``packed_step`` does what ``model.decode`` would do."""
    first = model.layers[0].attention.wqkv
    return isinstance(first, PackedLinear) and first.applies and not model.training


def packed_step(
    model: LlamaGen, tokens: Tensor, positions: Tensor, state: DecodeState, visible: Tensor | None
) -> Tensor:
    """Run new image tokens behind the cached ones; see ``LlamaGen.decode``.

    Args:
        tokens: int64 [B, N].
        positions: index of each token in the image, [N] or [B, N].
        state: where the tokens' keys and values go.
        visible: which rows of the cache each new token sees, bool or additive, [B, 1, N or 1, keys]; all if None.

    Returns:
        Final hidden states [B, N, dim].
    """
    embedding, cache, attention = model.tok_embeddings.weight, state.cache, model.layers[0].attention
    (batch, new), heads, kv_heads = tokens.shape, attention.heads, attention.kv_heads
    turned, rows = heads + kv_heads, batch * new
    table = torch.view_as_complex(model.rope[model.config.cls_token_num + positions])[..., None, :]
    x = embedding.new_zeros(max(rows, least_rows(embedding.dtype)), model.config.dim)
    mixed = torch.zeros_like(x)
    x[:rows] = embedding[tokens.flatten()]
    if visible is not None:  # what attention would make of it in every layer
        dtype = cache.keys.dtype
        hidden = torch.full((), -torch.inf, dtype=dtype, device=x.device)
        visible = (
            torch.where(visible, hidden.new_zeros(()), hidden) if visible.dtype == torch.bool else visible.to(dtype)
        )
    predicted = (positions + 1).expand(batch, -1)[..., None]
    for i, layer in enumerate(model.layers):
        if i in state.added:
            stream = state.added[i]
            x[:rows] += stream.take_along_dim(predicted.clamp(max=stream.shape[1] - 1), dim=1).flatten(0, 1)
        qkv = layer.attention.wqkv(layer.attention_norm(x))[:rows].view(batch, new, -1, attention.head_dim)
        queries = qkv[:, :, :turned].float()
        torch.view_as_complex(queries.unflatten(-1, (-1, 2))).mul_(table)
        queries, values = queries.transpose(1, 2), qkv[:, :, turned:].transpose(1, 2)
        k, v = cache.write(i, queries[:, heads:], values)
        out = F.scaled_dot_product_attention(queries[:, :heads], k, v, attn_mask=visible, enable_gqa=heads != kv_heads)
        mixed[:rows].view(batch, new, heads, -1).copy_(out.transpose(1, 2))
        x += layer.attention.wo(mixed)
        gate, up = joint(layer.ffn_norm(x), layer.feed_forward.w1, layer.feed_forward.w3)
        x += layer.feed_forward.w2(F.silu(gate).mul_(up))
    return model.norm(x[:rows].view(batch, new, -1))
