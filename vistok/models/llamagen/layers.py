"""Layers of LlamaGen: the embedders of its conditions, and the blocks. Parameter names are the published ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.llamagen.config import LlamaGenConfig
from vistok.ops import apply_rope, causal_attention
from vistok.ops.linear import swiglu


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in float32, cast back before the weight."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:  # the same bits in one call
            return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), self.eps)
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class MLP(nn.Module):
    """Two linear maps without bias around a GELU: [..., inputs] to [..., width]; zeros stay zeros."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.fc1 = nn.Linear(inputs, width, bias=False)
        self.fc2 = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class LabelEmbedder(nn.Module):
    """Class numbers [B] to one prefix token; the last row of the table is the null class."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + 1, config.dim)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)[:, None]


class CaptionEmbedder(nn.Module):
    """Text features [B, T, caption_dim] to T prefix tokens.

    ``uncond_embedding`` stands for "no caption". The reference draws it once and never trains it, but saves it.
    """

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.cap_proj = MLP(config.caption_dim, config.dim)
        null = torch.randn(config.cls_token_num, config.caption_dim) / config.caption_dim**0.5
        self.register_buffer("uncond_embedding", null)

    def forward(self, features: Tensor) -> Tensor:
        return self.cap_proj(features)


class Attention(nn.Module):
    """Grouped-query attention with one fused projection."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.heads = config.n_head
        self.kv_heads = config.n_kv_head or config.n_head
        self.head_dim = config.head_dim
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.wqkv = nn.Linear(config.dim, width, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns rotated queries [B, Hq, T, D], rotated keys, and values [B, Hkv, T, D]."""
        qkv = self.wqkv(x).unflatten(-1, (-1, self.head_dim))  # [B, T, Hq + 2 Hkv, D]
        rotated = apply_rope(qkv[:, :, : self.heads + self.kv_heads], rope).transpose(1, 2)
        return rotated[:, : self.heads], rotated[:, self.heads :], qkv[:, :, -self.kv_heads :].transpose(1, 2)

    def values(self, x: Tensor) -> Tensor:
        """Returns the values alone, [B, Hkv, T, D]."""
        weight = self.wqkv.weight[-self.kv_heads * self.head_dim :]
        return F.linear(x, weight).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """Returns heads [B, Hq, T, D] in the residual stream's width, [B, T, dim]."""
        return self.wo(x.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(swiglu(x, self.w1, self.w3))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: LlamaGenConfig, drop_path: float):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)
        self.attn_dropout_p = config.attn_dropout_p
        self.resid_dropout_p = config.resid_dropout_p
        self.ffn_dropout_p = config.ffn_dropout_p
        self.drop_path = drop_path

    def project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values of the stream [B, T, dim]; see ``Attention.project``."""
        return self.attention.project(self.attention_norm(x), rope)

    def residual(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Adds the attention's output [B, T, dim] and the feed-forward to the stream, with dropout in training."""
        x = x + self._dropped(F.dropout(mixed, self.resid_dropout_p, self.training))
        h = F.dropout(self.feed_forward(self.ffn_norm(x)), self.ffn_dropout_p, self.training)
        return x + self._dropped(h)

    def _dropped(self, h: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return h
        kept = torch.rand(len(h), 1, 1, device=h.device) >= self.drop_path
        return h * kept.to(h.dtype) / (1 - self.drop_path)

    def forward(self, x: Tensor, rope: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.project(x, rope)
        return self.residual(x, self.attention.merge(causal_attention(q, k, v, mask)))
