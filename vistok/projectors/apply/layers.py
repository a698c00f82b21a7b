"""Hooks that drop visual tokens between two layers of a decoder: what a :class:`LayerCompressor` needs to run.

Layers from a stage on get the kept tokens only, with the rotary positions they had; the cache of those layers is short,
and their masks are the full ones at the kept columns. Rows that keep fewer than others are padded on the left. What was
kept belongs to the cache, so that several may be in use at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.huggingface import given_cache
from vistok.models.pruned import PRUNED, Pruned, Stage, pruned_cache
from vistok.projectors.interface import LayerCompressor, LayerView


class LayerRun:
    """Base of what runs a compressor in the layers of a decoder: takes announced prompts, and masks shortened layers.

    Args:
        name: of the method, for sentences.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.whole: list[int] = []  # visual tokens of each prompt
        self._running: Pruned | None = None  # during a prefill

    def begin(self, visual: Tensor, attention_mask: Tensor | None, prompt: int) -> None:
        """Announce a prefill.

        Args:
            visual: which tokens are visual, bool [B, S].
            attention_mask: 0 at padding, [B, S], or None.
            prompt: number of columns that are prompt.
        """
        present = torch.ones_like(visual) if attention_mask is None else attention_mask.bool()
        self._running = Pruned(visual & present, present, prompt)
        self.whole = self._running.visual.sum(1).tolist()

    def end(self, cache: Any | None = None) -> Pruned | None:
        """The forward is over; returns what a prefill kept, which belongs to its cache from now on."""
        done, self._running = self._running, None
        if done is not None and cache is not None:
            setattr(cache, PRUNED, done)
        return done

    def _check_attention(self, decoder: nn.Module, layers: Sequence[int]) -> None:
        """Raises VistokError if a layer that would see fewer tokens is of another kind than full attention."""
        kinds = getattr(decoder.config, "layer_types", None)
        if kinds and any(kinds[layer] != "full_attention" for layer in layers):
            raise VistokError(f"{self.name} needs layers of full attention from layer {min(layers)} on.")

    def _check_cache(self, cache: Any | None) -> None:
        if getattr(cache, "is_compileable", False):
            raise VistokError(
                f"{self.name} needs a cache that grows by layer: leave cache_implementation at its default."
            )

    def _prefilled(self, hidden: Tensor, index: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a layer of the prefill that sees its stage's columns alone."""
        columns = self._running.stage(index).columns
        rotary = tuple(at_columns(t.expand(len(hidden), -1, -1), columns) for t in kwargs["position_embeddings"])
        return self._masked(hidden, self._running, index, 0, kwargs | {"position_embeddings": rotary})

    def _decoding(self, hidden: Tensor, pruned: Pruned, cache: Any, index: int, kwargs: dict[str, Any]) -> dict:
        """Arguments of a layer that reads what the prefill left in the cache."""
        past = cache.get_seq_length(index)
        gone = pruned.stage(index).columns.shape[1] - past
        if gone > 0:
            pruned.cut(gone)
        return self._masked(hidden, pruned, index, past, kwargs)

    def _masked(self, hidden: Tensor, pruned: Pruned, index: int, past: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        mask, new = kwargs.get("attention_mask"), hidden.shape[1]
        if mask is None and not pruned.padded(index):
            return kwargs
        stage, full = _of_rows(pruned.stage(index), len(hidden)), pruned.present.shape[1]
        prefill = self._running is not None
        return kwargs | {"attention_mask": _short_mask(mask, stage, full, past + new, new, prefill)}


class LayerPruning(LayerRun):
    """Runs a compressor that drops tokens in a decoder.

    Args:
        decoder: module with ``layers`` of the Llama family (``self_attn.q_proj``, ``k_proj``, rotary positions given to
            each layer).
        method: what to keep and where.
        hook: registers a forward hook, as :meth:`vistok.models.attach.Attachment.before` does.
        earliest: the first layer that may see fewer tokens.

    Raises:
        VistokError: the decoder cannot run it.
    """

    def __init__(self, decoder: nn.Module, method: LayerCompressor, hook: Any, earliest: int) -> None:
        super().__init__(method.name)
        layers = decoder.layers
        self.method = method
        self.first = method.layers(len(layers), earliest)
        self.count = len(layers)
        self._check_attention(decoder, range(self.first[0], len(layers)))
        for first in self.first:
            attention = getattr(layers[first - 1], "self_attn", layers[first - 1])
            if not hasattr(attention, "q_proj"):
                name = type(attention).__name__
                raise VistokError(f"{method.name} cannot read the queries of {name}: choose another method.")
        self.norm = decoder.norm
        self._raters: Tensor | None = None
        self._normed: dict[int, tuple[nn.Module, Tensor]] = {}
        if type(method).raters is not LayerCompressor.raters:
            hook(layers[0], self._rate)
        for first in self.first:
            hook(layers[first - 1].self_attn, self._remember)
        for index in range(self.first[0], len(layers)):
            hook(layers[index], self._shorten)

    def end(self, cache: Any | None = None) -> Pruned | None:
        self._raters = None
        self._normed.clear()
        return super().end(cache)

    def _rate(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._running is not None:
            prompt = torch.arange(args[0].shape[1], device=args[0].device) <= self._running.last()[:, None]
            self._raters = self.method.raters(args[0], self._running.visual, self._running.present & prompt)

    def _remember(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._running is not None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self._normed[attention.layer_idx + 1] = (attention, hidden)

    def _shorten(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        cache, index = given_cache(kwargs), layer.self_attn.layer_idx
        pruned = self._running or pruned_cache(cache)
        if pruned is None:
            return None
        self._check_cache(cache)
        hidden = args[0]
        if self._running is None:
            return args, self._decoding(hidden, pruned, cache, index, kwargs)
        if index in self.first:
            hidden = self._choose(layer, hidden, kwargs["position_embeddings"])
        return (hidden, *args[1:]), self._prefilled(hidden, index, kwargs)

    def _choose(self, layer: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Let the method choose among what is left, and shorten the states [B, S, D] to it."""
        running, index, raters = self._running, layer.self_attn.layer_idx, self._raters
        before = running.stage(index)
        rotary = tuple(t.expand(len(hidden), -1, -1) for t in rotary)
        visual, present, last = running.visual, running.present, running.last()
        if before is not None:
            visual = visual.gather(1, before.columns) & before.present
            present = before.present
            last = (before.columns == last[:, None]).int().argmax(1)
            rotary = tuple(at_columns(t, before.columns) for t in rotary)
            raters = None if raters is None else raters.gather(1, before.columns) & present
        attention, normed = self._normed.pop(index)
        view = LayerView(
            layer=index,
            states=hidden,
            visual=visual,
            present=present,
            last=last,
            attention=attention,
            normed=normed,
            rotary=rotary,
            norm=self.norm,
            following=layer,
            later=len(self.first) - 1 - self.first.index(index),
            whole=self.whole,
            raters=raters,
        )
        chosen = self.method.select(view)
        if isinstance(chosen, tuple):
            chosen, hidden = chosen
        stays = present & (~visual | chosen)
        lengths = stays.sum(1)
        shortest, width = torch.stack([lengths.min(), lengths.max()]).tolist()
        chosen, there = last_columns(stays, width)
        columns = chosen if before is None else before.columns.gather(1, chosen)
        running.add(index, Stage(columns, there), shortest < width)
        return at_columns(hidden, chosen)


def last_columns(stays: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The columns that stay of each row, in order, padded on the left with others to a common width.

    Args:
        stays: bool [B, S].
        width: of the longest row.

    Returns:
        int64 [B, width], and which of them stay, bool [B, width].
    """
    # A stable sort by "stays" keeps the order of tokens and puts those that stay last.
    chosen = stays.int().sort(dim=1, stable=True).indices[:, -width:]
    return chosen, torch.arange(width, device=stays.device) >= width - stays.sum(1, keepdim=True)


def _of_rows(stage: Stage, rows: int) -> Stage:
    """The stage of a cache whose rows were repeated since."""
    repeats = rows // len(stage.columns)
    return stage if repeats == 1 else Stage(*(t.repeat_interleave(repeats, 0) for t in stage))


def _short_mask(mask: Tensor | None, stage: Stage, full: int, keys: int, queries: int, prefill: bool) -> Tensor:
    """A layer's mask [B, 1, Q, K] over the kept columns of ``full`` ones and what was generated since."""
    present = nn.functional.pad(stage.present, (0, keys - stage.present.shape[1]), value=True)  # [B, keys]
    if mask is not None and mask.ndim == 2:  # of FlashAttention
        tail = mask[:, full:].bool()
        return torch.cat([present[:, : keys - tail.shape[1]], tail], 1).to(mask.dtype)
    if mask is None:
        line = torch.arange(keys, device=present.device)
        allowed = (line[None, :] <= line[keys - queries :, None])[None, None]
    else:
        mask = mask.expand(len(present), -1, -1, -1)
        if prefill:
            mask = mask.gather(2, stage.columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
        index = stage.columns[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
        mask = torch.cat([mask.gather(3, index), mask[..., full:]], -1)
        allowed = mask if mask.dtype == torch.bool else mask == 0
    allowed = allowed & present[:, None, None]
    own = torch.eye(keys, dtype=torch.bool, device=present.device)[keys - queries :]
    allowed = allowed | own  # a padded query sees itself: a row without any key would be NaN
    if mask is None or mask.dtype == torch.bool:
        return allowed
    return torch.zeros_like(allowed, dtype=mask.dtype).masked_fill(~allowed, torch.finfo(mask.dtype).min)


def at_columns(x: Tensor, columns: Tensor) -> Tensor:
    """[B, S, C] -> [B, S', C]."""
    return x.gather(1, columns[..., None].expand(-1, -1, x.shape[-1]))
