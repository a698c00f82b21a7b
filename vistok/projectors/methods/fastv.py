"""FastV (arXiv 2403.06764): drop visual tokens inside the language model, after the layer whose attention ranks them.

The last query's attention in layer K-1, mean over heads, ranks the visual tokens; from layer K on only the best
remain, at their original positions. Differs from the release, which forks the Llama classes for one prompt at a time:
hooks on the model's own layers (:mod:`vistok.projectors.apply.layers`), any batch and padding, one query row instead
of the attention matrix, and a cache that is full in layers below K and short from K on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import LayerCompressor, LayerView, check_keep, share_of


def rank_visual(attention: Tensor, visual: Tensor, count: int) -> Tensor:
    """The visual tokens that one query attends to most.

    Args:
        attention: of the query, mean over heads, [S].
        visual: which columns are visual tokens, bool [S].
        count: how many.

    Returns:
        Columns by falling attention, int64 [count].
    """
    return attention.masked_fill(~visual, -torch.inf).topk(count).indices


def attention_rows(queries: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
    """Attention of some queries of each row, by head, in float32.

    Args:
        queries: [B, H, R, d], rotated.
        keys: [B, Hkv, S, d], rotated.
        visible: keys that each query sees, bool [B, R, S].

    Returns:
        [B, H, R, S].
    """
    heads, kv_heads = queries.shape[1], keys.shape[1]
    q = queries.float().unflatten(1, (kv_heads, heads // kv_heads))
    logits = torch.einsum("bgrqd,bgsd->bgrqs", q, keys.float()) * queries.shape[-1] ** -0.5
    return logits.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1).flatten(1, 2)


def last_query_attention(view: LayerView) -> Tensor:
    """Attention of each prompt's last token in the layer before, mean over heads, in float32, [B, S]."""
    columns = torch.arange(view.visual.shape[1], device=view.last.device)
    visible = view.present & (columns <= view.last[:, None])
    return attention_rows(view.last_query()[:, :, None], view.keys(), visible[:, None]).mean(1)[:, 0]


def best_visual(scores: Tensor, visual: Tensor, counts: Sequence[int]) -> Tensor:
    """The visual tokens of each row with the largest scores.

    Args:
        scores: [B, S].
        visual: bool [B, S].
        counts: how many of each row.

    Returns:
        bool [B, S].
    """
    stays = torch.zeros_like(visual)
    for row, mine, seen, count in zip(stays, scores, visual, counts, strict=True):
        row[rank_visual(mine, seen, count)] = True
    return stays


class FastV(LayerCompressor):
    """Drops visual tokens inside the language model, by the attention of the prompt's last token.

    Args:
        keep: visual tokens of a prompt that stay (int), or their share (float).
        layer: K, the first layer that sees fewer, 1..layers-1; 2, or the first that the model allows, if None.
    """

    name = "fastv"

    def __init__(self, keep: int | float = 0.25, layer: int | None = None) -> None:
        self.keep = check_keep(keep)
        if layer is not None and layer < 1:
            raise VistokError(f"layer is {layer}: FastV ranks by the layer before it, so give at least 1.")
        self.layer = layer

    def layers(self, total: int, earliest: int) -> tuple[int, ...]:
        layer = max(2, earliest) if self.layer is None else self.layer
        if not earliest <= layer < total:
            raise VistokError(f"layer {layer} of {total}: give fastv a layer from {earliest} to {total - 1}.")
        return (layer,)

    def select(self, view: LayerView) -> Tensor:
        counts = [share_of(self.keep, total) for total in view.visual.sum(1).tolist()]
        return best_visual(last_query_attention(view), view.visual, counts)
