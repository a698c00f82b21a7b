"""FastV (arXiv 2403.06764): drop visual tokens inside the language model, after the layer whose attention ranks them.

The last query's attention in layer K-1, mean over heads, ranks the visual tokens; from layer K on only the best
remain, at their original positions. Differs from the release, which forks the Llama classes for one prompt at a time:
hooks on the model's own layers (:mod:`vistok.projectors.apply.layers`), any batch and padding, one query row instead
of the attention matrix, and a cache that is full in layers below K and short from K on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import LayerCompressor, LayerView, check_keep


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


def last_query_attention(query: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
    """Attention of one query a row, mean over heads, in float32.

    Args:
        query: [B, H, d], rotated.
        keys: [B, Hkv, S, d], rotated.
        visible: bool [B, S].

    Returns:
        [B, S].
    """
    heads, kv_heads = query.shape[1], keys.shape[1]
    q = query.float().unflatten(1, (kv_heads, heads // kv_heads))
    logits = torch.einsum("bgrd,bgsd->bgrs", q, keys.float()) * query.shape[-1] ** -0.5
    return logits.masked_fill(~visible[:, None, None], -torch.inf).softmax(-1).flatten(1, 2).mean(1)


class FastV(LayerCompressor):
    """Drop visual tokens inside the language model.

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

    def count(self, visual: int) -> int:
        """How many of a prompt's visual tokens stay."""
        if isinstance(self.keep, int):
            return min(self.keep, visual)
        return min(visual, max(1, round(self.keep * visual)))

    def select(self, view: LayerView) -> Tensor:
        columns = torch.arange(view.visual.shape[1], device=view.last.device)
        visible = view.present & (columns <= view.last[:, None])
        attention = last_query_attention(view.last_query(), view.keys(), visible)
        stays = torch.zeros_like(view.visual)
        for row, scores, visual in zip(stays, attention, view.visual, strict=True):
            row[rank_visual(scores, visual, self.count(int(visual.sum())))] = True
        return stays
