"""Hooks that prune visual tokens between two layers of a decoder: what :class:`FastV` needs to run in a model.

Layers from K on get the kept tokens only, with the rotary positions they had; the cache of those layers is short, and
their masks are the full ones at the kept columns. Rows that keep fewer than others are padded on the left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.huggingface import given_cache
from vistok.projectors.methods.fastv import FastV, last_query_attention, rank_visual


class LayerPruning:
    """Runs :class:`FastV` in a decoder until :meth:`remove`.

    Args:
        decoder: module with ``layers`` of the Llama family (``self_attn.q_proj``, ``k_proj``, half-split rotary
            positions given to each layer).
        method: what to keep and where.

    Attributes:
        columns: columns of the last prompt that stayed, int64 [B, S'], or None before the first.
        present: which of them are tokens, not padding, bool [B, S'].
    """

    def __init__(self, decoder: nn.Module, method: FastV) -> None:
        layers = decoder.layers
        if method.layer >= len(layers):
            raise VistokError(f"layer {method.layer} of {len(layers)}: give fastv a layer from 1 to {len(layers) - 1}.")
        ranking = layers[method.layer - 1].self_attn
        if not hasattr(ranking, "q_proj"):
            raise VistokError(f"fastv cannot read the queries of {type(ranking).__name__}: choose another method.")
        self.method = method
        self.columns: Tensor | None = None
        self.present: Tensor | None = None
        self._prompt: tuple[Tensor, Tensor] | None = None  # visual, present: bool [B, S]; only during a prefill
        self._full = 0
        self._positions: tuple[Tensor, Tensor] | None = None
        self._handles = [ranking.register_forward_pre_hook(self._rank, with_kwargs=True)]
        self._handles += [
            layer.register_forward_pre_hook(self._shorten, with_kwargs=True) for layer in layers[method.layer :]
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def begin(self, visual: Tensor, attention_mask: Tensor | None) -> None:
        """Announce a prefill.

        Args:
            visual: which tokens are visual, bool [B, S].
            attention_mask: 0 at padding, [B, S], or None.
        """
        present = torch.ones_like(visual) if attention_mask is None else attention_mask.bool()
        self._prompt = (visual & present, present)
        self._full = visual.shape[1]
        self.columns = None

    def end(self) -> None:
        """The prefill is over; what follows decodes."""
        self._prompt = None
        self._positions = None

    def forget(self) -> None:
        """The next forward has nothing to do with the last prompt."""
        self.end()
        self.columns = self.present = None

    def _rank(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._prompt is None:
            return
        visual, present = self._prompt
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        cos, sin = (t.expand(len(hidden), -1, -1) for t in kwargs["position_embeddings"])
        last = present.shape[1] - 1 - present.flip(1).int().argmax(1)  # the last token of each row
        rows = torch.arange(len(hidden), device=hidden.device)
        query = attention.q_proj(hidden[rows, last]).unflatten(-1, (-1, attention.head_dim))
        keys = attention.k_proj(hidden).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, "q_norm"):
            query, keys = attention.q_norm(query), attention.k_norm(keys)
        query = _rotate(query, cos[rows, last][:, None], sin[rows, last][:, None])
        keys = _rotate(keys.transpose(1, 2), cos[:, None], sin[:, None])
        self._choose(last_query_attention(query, keys, present), visual, present)
        self._positions = tuple(_at(t, self.columns) for t in (cos, sin))

    def _choose(self, attention: Tensor, visual: Tensor, present: Tensor) -> None:
        stays = present & ~visual
        for row, scores, mine in zip(stays, attention, visual, strict=True):
            row[rank_visual(scores, mine, self.method.count(int(mine.sum())))] = True
        lengths = stays.sum(1)
        width = int(lengths.max())
        # A stable sort by "stays" keeps the order of tokens and puts those that stay last, padding before them.
        self.columns = stays.int().sort(dim=1, stable=True).indices[:, -width:]
        self.present = torch.arange(width, device=stays.device) >= width - lengths[:, None]

    def _shorten(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if self.columns is None:
            return None
        hidden, kwargs = args[0], dict(kwargs)
        cache, index = given_cache(kwargs), layer.self_attn.layer_idx
        if getattr(cache, "is_compileable", False):
            raise VistokError("fastv needs a cache that grows by layer: leave cache_implementation at its default.")
        if self._prompt is not None:
            if index == self.method.layer:
                hidden = _at(hidden, self.columns)
            kwargs["position_embeddings"] = self._positions
            past = 0
        else:
            past = cache.get_seq_length(index) if cache is not None else 0
        mask = kwargs.get("attention_mask")
        if mask is not None or not bool(self.present.all()):
            kwargs["attention_mask"] = self._short_mask(mask, past + hidden.shape[1], hidden.shape[1])
        return (hidden, *args[1:]), kwargs

    def _short_mask(self, mask: Tensor | None, keys: int, queries: int) -> Tensor:
        """The layer's mask over the kept columns and what was generated since."""
        present = nn.functional.pad(self.present, (0, keys - self.present.shape[1]), value=True)  # [B, keys]
        if mask is not None and mask.ndim == 2:
            return mask.new_ones(present.shape) * present
        if mask is None:
            line = torch.arange(keys, device=present.device)
            allowed = (line[None, :] <= line[keys - queries :, None])[None, None]
        else:
            rows = len(present)
            mask = mask.expand(rows, -1, -1, -1)
            if self._prompt is not None:
                mask = mask.gather(2, self.columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
            index = self.columns[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
            mask = torch.cat([mask.gather(3, index), mask[..., self._full :]], -1)
            allowed = mask if mask.dtype == torch.bool else mask == 0
        allowed = allowed & present[:, None, None]
        own = torch.eye(keys, dtype=torch.bool, device=present.device)[keys - queries :]
        allowed = allowed | own  # a padded query sees itself: a row without any key would be NaN
        if mask is None or mask.dtype == torch.bool:
            return allowed
        return torch.zeros_like(allowed, dtype=mask.dtype).masked_fill(~allowed, torch.finfo(mask.dtype).min)


def _at(x: Tensor, columns: Tensor) -> Tensor:
    """[B, S, C] -> [B, S', C]."""
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions in the half-split layout of the Llama family."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], -1) * sin
