"""A decode step on a CPU with packed weights: one new token a sequence, or the few of a draft, of a LlamaGen or of the
EAGLE network that drafts for it.

Products are four fifths of a step of GPT-B, and most of the rest are some 60 small operations a layer in
``LlamaGen.decode`` and ``EagleNetwork.forward``. Here they are some 20, with the same bits in float32: the stream is
padded once to the least rows of a packed product, queries turn in place, keys and values go straight to their rows of
the cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.ops.linear import PackedLinear, joined, joint, least_rows

if TYPE_CHECKING:
    from vistok.models.heads.eagle import EagleNetwork
    from vistok.models.llamagen import DecodeState, LlamaGen
    from vistok.ops import KVCache


def applies(layer: nn.Linear) -> bool:
    """Whether a packed step does what the model of this layer would do."""
    return isinstance(layer, PackedLinear) and layer.applies and not layer.training


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
    rows = batch * new
    table = _turns(model.rope, model.config.cls_token_num + positions)
    x = embedding.new_zeros(max(rows, least_rows(embedding.dtype)), model.config.dim)
    mixed = torch.zeros_like(x)
    x[:rows] = embedding[tokens.flatten()]
    visible = _additive(visible, cache.keys.dtype)
    predicted = (positions + 1).expand(batch, -1)[..., None]
    for i, layer in enumerate(model.layers):
        if i in state.added:
            stream = state.added[i]
            x[:rows] += stream.take_along_dim(predicted.clamp(max=stream.shape[1] - 1), dim=1).flatten(0, 1)
        qkv = layer.attention.wqkv(layer.attention_norm(x))[:rows].view(batch, new, -1, attention.head_dim)
        mixed[:rows].view(batch, new, heads, -1).copy_(_attend(qkv, heads, kv_heads, table, cache, i, visible))
        x += layer.attention.wo(mixed)
        gate, up = joint(layer.ffn_norm(x), layer.feed_forward.w1, layer.feed_forward.w3)
        x += layer.feed_forward.w2(F.silu(gate).mul_(up))
    return model.norm(x[:rows].view(batch, new, -1))


def packed_draft(
    network: EagleNetwork, features: Tensor, tokens: Tensor, cache: KVCache, slots: Tensor | None, visible: Tensor
) -> Tensor:
    """Predict the features that follow drafted tokens; see ``EagleNetwork.forward``.

    Args:
        features, tokens, cache, slots: as there.
        visible: which slots of the cache each new one sees, bool [R, 1, T, keys].

    Returns:
        [R, T, hidden].
    """
    layer, (batch, new), config = network.layers[0], tokens.shape, network.config
    attention, mlp, rows, width = layer.self_attn, layer.mlp, batch * new, features.shape[-1]
    if slots is None:
        slots = cache.lengths[:, None] + torch.arange(new)
    table = _turns(network.rope, slots.clamp(max=len(network.rope) - 1))
    read = features.new_zeros(max(rows, least_rows(features.dtype)), 2 * width)
    read[:rows, :width] = network.embed_tokens.weight[tokens.flatten()]
    read[:rows, width:].view(batch, new, width).copy_(features)
    x = network.fc(read)
    qkv = joined(x, attention.q_proj, attention.k_proj, attention.v_proj)[:rows].view(batch, new, -1, config.head_dim)
    heads, kv_heads = config.num_attention_heads, config.kv_heads
    out = _attend(qkv, heads, kv_heads, table, cache, 0, _additive(visible, cache.keys.dtype))
    mixed = torch.zeros_like(x)
    mixed[:rows].view(batch, new, heads, -1).copy_(out)
    x += attention.o_proj(mixed)
    gate, up = joint(layer.post_attention_layernorm(x), mlp.gate_proj, mlp.up_proj)
    x += mlp.down_proj(F.silu(gate).mul_(up))
    return x[:rows].view(batch, new, width)


def _turns(rope: Tensor, places: Tensor) -> Tensor:
    """Rotations of tokens at places [N] or [B, N] of a table, complex [..., N, 1, D // 2]."""
    return torch.view_as_complex(rope[places])[..., None, :]


def _additive(visible: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What attention would make of a mask in every layer."""
    if visible is None or visible.dtype != torch.bool:
        return None if visible is None else visible.to(dtype)
    hidden = torch.full((), -torch.inf, dtype=dtype, device=visible.device)
    return torch.where(visible, hidden.new_zeros(()), hidden)


def _attend(
    qkv: Tensor, heads: int, kv_heads: int, table: Tensor, cache: KVCache, layer: int, visible: Tensor | None
) -> Tensor:
    """Attention [B, N, Hq, D] of projections [B, N, Hq + 2 Hkv, D] over the cache, to which keys and values go."""
    turned = heads + kv_heads
    queries = qkv[:, :, :turned].float()
    torch.view_as_complex(queries.unflatten(-1, (-1, 2))).mul_(table)
    queries, values = queries.transpose(1, 2), qkv[:, :, turned:].transpose(1, 2)
    k, v = cache.write(layer, queries[:, heads:], values)
    q = queries[:, :heads].to(k.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=heads != kv_heads)
    return out.transpose(1, 2)
