"""SEED's causal Q-Former (arXiv 2307.08041): learned queries that read a picture, each seeing those before it.

It has the shape and the parameter names of a BERT without word embeddings: post-norm blocks, the queries' own
feed-forward, and cross-attention to the picture in every second block. The reference masks causally only where there
are exactly 32 queries; here queries are always causal, so the first k of them give the first k outputs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from vistok.tokenizers.seed_config import SeedConfig


class _Projections(nn.Module):
    def __init__(self, width: int, context: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(context, width)
        self.value = nn.Linear(context, width)


class _Output(nn.Module):
    """What follows an attention or a feed-forward: a map, the residual, and a layer norm."""

    def __init__(self, inputs: int, width: int, eps: float):
        super().__init__()
        self.dense = nn.Linear(inputs, width)
        self.LayerNorm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class _Attention(nn.Module):
    def __init__(self, width: int, context: int, heads: int, eps: float):
        super().__init__()
        self.heads = heads
        self.self = _Projections(width, context)
        self.output = _Output(width, width, eps)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """States [B, n, D] after attention to ``context`` [B, m, C], or causally to themselves."""
        source = x if context is None else context
        q, k, v = (
            each.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.self.query(x), self.self.key(source), self.self.value(source))
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=context is None)
        return self.output(out.transpose(1, 2).flatten(2), x)


class _Intermediate(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.dense = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.dense(x))


class _Layer(nn.Module):
    def __init__(self, config: SeedConfig, context: int, crossed: bool):
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.attention = _Attention(width, width, config.heads, eps)
        if crossed:
            self.crossattention = _Attention(width, context, config.heads, eps)
        self.intermediate_query = _Intermediate(width, config.hidden)
        self.output_query = _Output(config.hidden, width, eps)
        self.crossed = crossed

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attention(x)
        if self.crossed:
            x = self.crossattention(x, context)
        return self.output_query(self.intermediate_query(x), x)


class _Embeddings(nn.Module):
    def __init__(self, width: int, eps: float):
        super().__init__()
        self.LayerNorm = nn.LayerNorm(width, eps=eps)


class _Encoder(nn.Module):
    def __init__(self, config: SeedConfig, context: int):
        super().__init__()
        self.layer = nn.ModuleList(_Layer(config, context, i % config.cross_every == 0) for i in range(config.layers))


class _Bert(nn.Module):
    def __init__(self, config: SeedConfig, context: int):
        super().__init__()
        self.embeddings = _Embeddings(config.width, config.norm_eps)
        self.encoder = _Encoder(config, context)


class QFormer(nn.Module):
    """Queries [1, n, D] and what they read [B, m, C] to states [B, n, D].

    Args:
        config: of the tokenizer.
        context: C.
    """

    def __init__(self, config: SeedConfig, context: int):
        super().__init__()
        self.bert = _Bert(config, context)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        x = self.bert.embeddings.LayerNorm(queries).expand(len(context), -1, -1)
        for layer in self.bert.encoder.layer:
            x = layer(x, context)
        return x
