"""A Hugging Face causal LM with the package's KV cache: token trees in, logits out, accepted rows kept in place.

transformers leaves a four-dimensional attention mask as it is, and its attention layers ask the cache object for all
keys and values, so one cache and one mask for each kind of layer make a decoder run over a tree. Prompts of a batch are
stored without their padding. Which models this holds for is asked in ``vistok.samplers.targets.support``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.huggingface import cache_argument
from vistok.ops import KVCache
from vistok.samplers.targets.features import decoder_layers, states_entering

if TYPE_CHECKING:
    from vistok.samplers.tree import ExtraRows


def layer_windows(config: Any) -> dict[str, tuple[str, int | None]] | None:
    """How far the layers of a text config look back, by kind of layer.

    Returns:
        For each kind ``("window", tokens)``, ``("chunk", tokens)`` or ``("window", None)`` for all of the text; None if
        there is a kind of layer that is no attention over rows.
    """
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True):
        window = None
    if not kinds:
        return {"full_attention" if window is None else "sliding_attention": ("window", window)}
    known = {
        "full_attention": ("window", None),
        "sliding_attention": ("window", window),
        "chunked_attention": ("chunk", getattr(config, "attention_chunk_size", None)),
    }
    return {kind: known[kind] for kind in kinds} if kinds <= set(known) else None


def windowed(mask: Tensor, shape: str, size: int | None) -> Tensor:
    """The part of a mask that a kind of layer sees.

    The columns that a row sees are the tokens of its own text in their order, so positions are counted among them:
    draft nodes on other branches do not count.

    Args:
        mask: bool [B, T, M], a row's last visible column is the row itself.
        shape: ``window``, the last ``size`` tokens; or ``chunk``, those of the row's own block of ``size`` tokens.
        size: None for all.
    """
    if size is None:
        return mask
    place = mask.long().cumsum(-1) - 1
    own = place[..., -1:]
    near = place > own - size if shape == "window" else place // size == own // size
    return mask & near


def text_model(model: nn.Module) -> nn.Module:
    """The text model within a causal LM; the whole where it names none (or calls its output layer so)."""
    decoder = model.get_decoder()
    return decoder if hasattr(decoder, "config") else model


@contextmanager
def extra_rows(model: nn.Module, extra: ExtraRows, nodes: int) -> Iterator[None]:
    """Puts the states of extra rows, which stand behind ``nodes`` rows, into every call of the model in the block."""

    def embedded(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return extra.enter(output, nodes)

    def before(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        if inputs:
            return (extra.enter(inputs[0], nodes), *inputs[1:]), named
        return inputs, named | {"hidden_states": extra.enter(named["hidden_states"], nodes)}

    if extra.layer == 0:
        hook = model.get_input_embeddings().register_forward_hook(embedded)
    else:
        hook = decoder_layers(text_model(model))[extra.layer].register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


class CachedLM:
    """A causal LM and the cache of a batch.

    Args:
        model: loaded by transformers; the whole of it is called unless a backbone is given.
        length: most rows of a sequence: prompt, new tokens and the widest tree.
        features: keep the final features of each call's rows, or the states that enter these layers, side by side.
        end: positions from here on do not exist in any text, so rows of drafts that reach there stay in front of it.
        backbone: takes ``inputs_embeds`` and gives ``last_hidden_state``, e.g. the text model within a multimodal one.
        embed: tokens [B, T] to the backbone's input; the model's own table if None.
        head: the backbone's output to logits; the model's own output layer if None.
        offset: what a sequence's positions are ahead of its rows, [B, 1] (a picture takes fewer positions than rows).

    Attributes:
        forwards: calls so far.
        vocabulary: number of tokens.
        hidden: ``features`` of the last call's rows, [B, T, D]; None without.
    """

    def __init__(
        self,
        model: nn.Module,
        length: int,
        features: bool | tuple[int, ...] = False,
        *,
        end: int | None = None,
        backbone: nn.Module | None = None,
        embed: Callable[[Tensor], Tensor] | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        offset: Tensor | int = 0,
    ):
        from vistok.samplers.targets.tree_cache import TreeCache

        self.model, self.features, self.offset, self.end = model, features, offset, end
        config = model.config.get_text_config(decoder=True)
        self.eager = config._attn_implementation == "eager"
        self.vocabulary = config.vocab_size
        self.windows = layer_windows(config) or {"full_attention": ("window", None)}
        self.backbone, self.embed = backbone, embed or model.get_input_embeddings()
        self.head = head or model.get_output_embeddings()
        called = model if backbone is None else backbone
        self._cache_argument = cache_argument(called)
        self._keeps_logits = "logits_to_keep" in inspect.signature(called.forward).parameters
        self.rows = TreeCache(config.num_hidden_layers, length)
        self.forwards = 0
        self.hidden: Tensor | None = None

    @property
    def cache(self) -> KVCache:
        """The cache; there is one after the first forward."""
        return self.rows.rows

    def read(self, tokens: Tensor, count: Tensor) -> Tensor:
        """Read the beginning of each sequence.

        Args:
            tokens: int64 [B, T], the first ``count`` of each sequence are real.
            count: int64 [B].

        Returns:
            Logits behind the last real token, [B, 1, V].
        """
        width = tokens.shape[1]
        positions = torch.arange(width, device=tokens.device)[None]
        seen = positions <= positions.mT
        last, place = (count - 1).unique(return_inverse=True)
        logits = self._run(tokens, positions, seen[None], last)
        self.cache.advance(width if int(count.min()) == width else count)
        return logits.gather(1, place[:, None, None].expand(-1, 1, logits.shape[-1]))

    def forward(self, tokens: Tensor, depth: Tensor, seen: Tensor, extra: ExtraRows | None = None) -> Tensor:
        """Run rows behind the cached ones; they stay uncommitted until the cache advances or commits.

        Args:
            tokens: int64 [B, T].
            depth: of the rows below the last cached token that all of them see, less one, int64 [B or 1, T].
            seen: bool [B or 1, T, M], which of the last M rows, the new ones included, each row sees.
            extra: rows without tokens behind the T, which ``depth`` and ``seen`` count as well.

        Returns:
            Logits [B, T, V], those of extra rows behind.
        """
        if extra is not None:
            nodes, tokens = tokens.shape[1], F.pad(tokens, (0, extra.count))
            with extra_rows(self.model, extra, nodes):
                return self.forward(tokens, depth, seen)
        slots, cache = seen.shape[2], self.cache
        earlier = slots - tokens.shape[1]
        prefix = cache.lengths - earlier
        if cache.common_length is not None:
            mask = F.pad(seen, (cache.common_length - earlier, 0), value=True)
        else:
            mask = _ragged(seen.expand(len(tokens), -1, -1), prefix, cache.bound + tokens.shape[1], cache.capacity)
        return self._run(tokens, prefix[:, None] + depth.clamp(min=0), mask, None)

    def _run(self, tokens: Tensor, positions: Tensor, mask: Tensor, keep: Tensor | None) -> Tensor:
        """Logits of the rows ``keep``, int64 [K], or of all."""
        if self.end is not None:
            positions = positions.clamp(max=self.end - 1)
        arguments = {
            "attention_mask": self.masks(mask, len(tokens)),
            "position_ids": (positions + self.offset).expand(len(tokens), -1),
            "use_cache": True,
            self._cache_argument: self.rows,
        }
        self.forwards += 1
        layers = self.features if isinstance(self.features, tuple) else ()
        with states_entering(self.decoder, layers) as found:
            logits = self._logits(tokens, arguments, keep)
        if layers:
            self.hidden = torch.cat([found[layer] for layer in layers], -1)
        return logits

    @cached_property
    def decoder(self) -> nn.Module:
        """The module with the layers."""
        return text_model(self.model) if self.backbone is None else self.backbone

    def _logits(self, tokens: Tensor, arguments: dict[str, Any], keep: Tensor | None) -> Tensor:
        final = self.features is True
        if self.backbone is not None:
            hidden = self.backbone(inputs_embeds=self.embed(tokens), **arguments).last_hidden_state
            self.hidden = hidden if final else None
            return self.head(hidden if keep is None else hidden[:, keep])
        if keep is not None and self._keeps_logits:
            arguments["logits_to_keep"] = keep
        if final:
            logits = self._with_features(tokens, arguments)
        else:
            logits = self.model(input_ids=tokens, **arguments).logits
        return logits[:, keep] if keep is not None and not self._keeps_logits else logits

    def _with_features(self, tokens: Tensor, arguments: dict[str, Any]) -> Tensor:
        """Run the model and keep what its decoder gives, without the features of all other layers where possible."""
        decoder = self.decoder
        if decoder is self.model:
            output = self.model(input_ids=tokens, **arguments, output_hidden_states=True)
            self.hidden = output.hidden_states[-1]
            return output.logits
        found: list[Tensor] = []
        hook = decoder.register_forward_hook(lambda module, inputs, output: found.append(output[0]))
        try:
            logits = self.model(input_ids=tokens, **arguments).logits
        finally:
            hook.remove()
        self.hidden = found[0]
        return logits

    def masks(self, mask: Tensor, batch: int = 1) -> Tensor | dict[str, Tensor]:
        """Which columns each row sees, bool [B or 1, T, M], as the model takes it for a batch: one mask, or one a kind
        of layer. Some classes (XGLM) want it for every sequence.
        """
        masks = {
            kind: self._mask(windowed(mask, *window)).expand(batch, -1, -1, -1) for kind, window in self.windows.items()
        }
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(self, mask: Tensor) -> Tensor:
        mask = mask[:, None]
        # Eager attention adds the mask to the scores, a boolean one as 0 and 1. On a CPU the others turn a boolean one
        # into such a sum anyway, once in each layer.
        if not self.eager and mask.device.type != "cpu":
            return mask
        dtype = self.model.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def _ragged(seen: Tensor, prefix: Tensor, keys: int, capacity: int) -> Tensor:
    """Mask [B, T, keys] of sequences whose draft rows begin behind prefixes of different lengths."""
    keys = min(keys, capacity)
    columns = torch.arange(keys, device=seen.device)
    slot = columns - prefix[:, None]
    inside = (slot >= 0) & (slot < seen.shape[2])
    drafted = seen.gather(2, slot.clamp(0, seen.shape[2] - 1)[:, None].expand(-1, seen.shape[1], -1))
    return (slot < 0)[:, None] | (inside[:, None] & drafted)
