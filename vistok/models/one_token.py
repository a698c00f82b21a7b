"""One decode step of a LlamaGen on a CPU: one new token a sequence, all sequences equally long.

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


def applies(model: LlamaGen, tokens: Tensor, state: DecodeState) -> bool:
    """Whether ``decode_one`` does what ``model.decode`` would do with tokens [B, N]."""
    if tokens.shape[1] != 1 or state.cache.common_length is None or model.training:
        return False
    first = model.layers[0].attention.wqkv
    return isinstance(first, PackedLinear) and first.applies


def decode_one(model: LlamaGen, tokens: Tensor, positions: Tensor, state: DecodeState) -> Tensor:
    """Run one new image token a sequence behind the cached ones; see ``LlamaGen.decode``.

    Args:
        tokens: int64 [B, 1].
        positions: index of each token in the image, [1] or [B, 1].
        state: where the tokens' keys and values go.

    Returns:
        Final hidden states [B, 1, dim].
    """
    embedding, cache, attention = model.tok_embeddings.weight, state.cache, model.layers[0].attention
    batch, heads, kv_heads, width = len(tokens), attention.heads, attention.kv_heads, attention.head_dim
    turned, rows = heads + kv_heads, max(batch, least_rows(embedding.dtype))
    table = torch.view_as_complex(model.rope[model.config.cls_token_num + positions].float())  # [B or 1, 1, D / 2]
    x = embedding.new_zeros(rows, model.config.dim)
    mixed = torch.zeros_like(x)
    x[:batch] = embedding[tokens[:, 0]]
    predicted = (positions + 1).expand(batch, -1)[..., None]
    at, keys = cache.next_row(), cache.bound + 1
    bias = None if state.bias is None else state.bias[..., :keys].to(cache.keys.dtype)
    for i, layer in enumerate(model.layers):
        if i in state.added:
            stream = state.added[i]
            x[:batch] += stream.take_along_dim(predicted.clamp(max=stream.shape[1] - 1), dim=1)[:, 0]
        qkv = layer.attention.wqkv(layer.attention_norm(x))[:batch].view(batch, -1, width)
        queries = qkv[:, :turned].float()
        torch.view_as_complex(queries.unflatten(-1, (-1, 2))).mul_(table)
        k, v = cache.keys[i], cache.values[i]
        k[:, :, at], v[:, :, at] = queries[:, heads:], qkv[:, turned:]
        mixed[:batch] = F.scaled_dot_product_attention(
            queries[:, :heads, None], k[:, :, :keys], v[:, :, :keys], attn_mask=bias, enable_gqa=heads != kv_heads
        ).view(batch, -1)
        x += layer.attention.wo(mixed)
        gate, up = joint(layer.ffn_norm(x), layer.feed_forward.w1, layer.feed_forward.w3)
        x += layer.feed_forward.w2(F.silu(gate).mul_(up))
    return model.norm(x[:batch, None])
