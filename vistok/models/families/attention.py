"""Attention of the CLS token over the patches, from one query: O(N·C), whatever attention implementation runs.

The softmax runs over CLS and all patches, in float32; the CLS column is dropped afterwards without renormalising.
Agrees with the CLS row of eager attention weights without their [N+1, N+1] matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError


def cls_logits(query: Tensor, keys: Tensor, heads: int) -> Tensor:
    """Scaled products of one query with all keys, in float32.

    Args:
        query: [V, 1, H*d].
        keys: [V, S, H*d].
        heads: H.

    Returns:
        [V, H, S].
    """
    q, k = (x.float().unflatten(-1, (heads, -1)) for x in (query, keys))
    return torch.einsum("vqhd,vshd->vhs", q, k) * q.shape[-1] ** -0.5


@dataclass
class LayerAttention:
    """The CLS query and the keys of one layer of a vision tower.

    Where the language model's tokens are blocks of patches (InternVL), ``pool`` averages a patch score [..., P] over
    each block, [..., N]; every method below then speaks of tokens.

    Attributes:
        query: [V, 1, H*d], the first query of the sequence.
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

    def cls_logits(self) -> Tensor:
        """Pre-softmax attention of CLS to the tokens, [V, H, N]."""
        self._check()
        return self._pooled(cls_logits(self.query, self.keys, self.heads)[..., 1:])

    def cls_attention(self) -> Tensor:
        """Attention of CLS to the tokens, [V, H, N]."""
        self._check()
        return self._pooled(cls_logits(self.query, self.keys, self.heads).softmax(-1)[..., 1:])

    def full_width_attention(self) -> Tensor:
        """Attention of CLS to the tokens with all heads as one, [V, N]."""
        self._check()
        return self._pooled(cls_logits(self.query, self.keys, 1).softmax(-1)[:, 0, 1:])

    def patch_keys(self) -> Tensor:
        """Keys of the tokens, heads side by side, [V, N, H*d]."""
        keys = self.keys[:, 1:] if self.has_cls else self.keys
        return self._pooled(keys.transpose(1, 2)).transpose(1, 2)

    def mean_keys(self) -> Tensor:
        """Head mean of the tokens' keys, [V, N, d]."""
        return self.patch_keys().unflatten(-1, (self.heads, -1)).mean(-2)

    def _pooled(self, scores: Tensor) -> Tensor:
        return scores if self.pool is None else self.pool(scores)

    def _check(self) -> None:
        if not self.has_cls:
            raise VistokError(
                "this vision tower has no CLS token to guide the choice: use divprune, tome, uniform or random."
            )
