"""How much a vision tower attends to each of its patches, without its attention matrix, whatever implementation runs.

Where the tower has a CLS token, that is the CLS row: O(N*C). Where it has none, it is the mean attention that a patch
receives from all patches, summed up block by block: O(N^2*C) of work, O(N) of memory. The softmax runs in float32 over
the whole sequence; the CLS column is dropped afterwards without renormalising.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

BLOCK = 128  # queries at a time


def cls_logits(query: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Returns the scaled products of queries with all keys, in float32.

    Args:
        query: [V, 1, H*d].
        keys: [V, S, H*d].
        heads: H.

    Returns:
        [V, H, S].
    """
    return _logits(query, keys, heads)[:, :, 0]


def received_attention(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Returns the mean attention over all queries that each key receives, in float32.

    Args:
        queries, keys: [V, P, H*d].
        heads: H.

    Returns:
        [V, H, P]; a row sums to one.
    """
    q, k = (x.float().unflatten(-1, (heads, -1)).transpose(1, 2).contiguous() for x in (queries, keys))
    q = q * q.shape[-1] ** -0.5
    return sum((block @ k.mT).softmax(-1).sum(2) for block in q.split(BLOCK, 2)) / queries.shape[1]


def _logits(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """[V, Q, H*d] and [V, S, H*d] to [V, H, Q, S]."""
    q, k = (x.float().unflatten(-1, (heads, -1)) for x in (queries, keys))
    return torch.einsum("vqhd,vshd->vhqs", q, k) * q.shape[-1] ** -0.5


@dataclass
class LayerAttention:
    """Queries and keys of one layer of a vision tower.

    Where the language model's tokens are blocks of patches (InternVL), ``pool`` averages a patch score [..., P] over
    each block, [..., N]; every method below then speaks of tokens.

    Attributes:
        query: [V, 1, H*d], that of the CLS token; of all patches, [V, P, H*d], in a tower without one.
        keys: [V, P+1, H*d] with CLS first, or [V, P, H*d] in a tower without one.
        heads: H.
        has_cls: whether the first of the sequence is a CLS token.
        pool: from patches to tokens; identity if None.
    """

    query: Tensor
    keys: Tensor
    heads: int
    has_cls: bool = True
    pool: Callable[[Tensor], Tensor] | None = None
    _saliency: Tensor | None = field(default=None, init=False, repr=False)

    def saliency(self) -> Tensor:
        """Returns the attention of CLS to the tokens or, without one, the mean that they receive, [V, H, N]; kept."""
        if self._saliency is None:
            self._saliency = self._pooled(self._attention(self.heads))
        return self._saliency

    def log_saliency(self) -> Tensor:
        """Returns the attention of CLS before the softmax or, without one, the log of the mean received, [V, H, N]."""
        if self.has_cls:
            return self._pooled(cls_logits(self.query, self.keys, self.heads)[..., 1:])
        return self.saliency().log()

    def cls_attention(self) -> Tensor:
        """Returns :meth:`saliency`, under its former name."""
        warnings.warn("cls_attention() is saliency() now: use that name.", FutureWarning, 2)
        return self.saliency()

    def cls_logits(self) -> Tensor:
        """Returns :meth:`log_saliency`, under its former name."""
        warnings.warn("cls_logits() is log_saliency() now: use that name.", FutureWarning, 2)
        return self.log_saliency()

    def full_width_attention(self) -> Tensor:
        """Returns :meth:`saliency` with all heads as one, [V, N]."""
        return self._pooled(self._attention(1)[:, 0])

    def patch_keys(self) -> Tensor:
        """Returns keys of the tokens, heads side by side, [V, N, H*d]."""
        keys = self.keys[:, 1:] if self.has_cls else self.keys
        return self._pooled(keys.transpose(1, 2)).transpose(1, 2)

    def mean_keys(self) -> Tensor:
        """Returns the head mean of the tokens' keys, [V, N, d]."""
        return self.patch_keys().unflatten(-1, (self.heads, -1)).mean(-2)

    def _attention(self, heads: int) -> Tensor:
        if self.has_cls:
            return cls_logits(self.query, self.keys, heads).softmax(-1)[..., 1:]
        return received_attention(self.query, self.keys, heads)

    def _pooled(self, scores: Tensor) -> Tensor:
        return scores if self.pool is None else self.pool(scores)
