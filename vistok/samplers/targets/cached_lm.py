"""A Hugging Face causal LM with the package's KV cache: token trees in, logits out, accepted rows kept in place.

transformers leaves a four-dimensional attention mask as it is, and its attention layers ask the cache object for all
keys and values, so one object with an ``update`` method and one mask make any decoder of full attention run over a tree
(Llama, Qwen, Mistral and GPT-NeoX types are tested). Prompts of a batch are stored without their padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.huggingface import cache_argument
from vistok.ops import KVCache

ATTENTION = ("sdpa", "eager")


class _CacheRows:
    """What transformers' attention layers see of a KVCache, which is allocated when the first layer writes.

    Args:
        layers: of the model.
        length: rows of each sequence.
    """

    def __init__(self, layers: int, length: int):
        self.layers, self.length = layers, length
        self.cache: KVCache | None = None

    def update(self, keys: Tensor, values: Tensor, layer: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.cache is None:
            batch, heads, _, width = keys.shape
            self.cache = KVCache(self.layers, batch, self.length, heads, width, keys.dtype, keys.device)
        return self.cache.write(layer, keys, values)


def check_model(model: nn.Module, length: int) -> None:
    """Raise VistokError if trees cannot run on this model with sequences of this length."""
    config = model.config.get_text_config(decoder=True)
    if model.config.is_encoder_decoder:
        raise VistokError(f"{type(model).__name__} is an encoder-decoder: speculation needs a decoder-only model.")
    attention = config._attn_implementation
    if attention not in ATTENTION:
        raise VistokError(
            f"the attention implementation '{attention}' takes no tree mask: load the model with "
            f"attn_implementation='{ATTENTION[0]}'."
        )
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None)
    slides = window is not None and (kinds != {"full_attention"} or not hasattr(config, "layer_types"))
    if kinds - {"full_attention", "sliding_attention"} or (slides and length > window):
        reason = f"a sliding window of {window} tokens" if slides else f"layers of the kinds {sorted(kinds)}"
        raise VistokError(
            f"{type(model).__name__} has {reason}, but trees need full attention over all {length} tokens: shorten the "
            "prompt or max_new_tokens, or take another model."
        )


class CachedLM:
    """A causal LM and the cache of a batch.

    Args:
        model: loaded by transformers.
        length: most rows of a sequence: prompt, new tokens and the widest tree.
        features: keep the final features of each call's rows.

    Attributes:
        forwards: calls so far.
        hidden: what the output layer read in the last call, for all its rows, [B, T, D]; None without ``features``.

    Raises:
        VistokError: trees cannot run on this model.
    """

    def __init__(self, model: nn.Module, length: int, features: bool = False):
        check_model(model, length)
        self.model, self.features = model, features
        config = model.config.get_text_config(decoder=True)
        self.eager = config._attn_implementation == "eager"
        self._cache_argument = cache_argument(model)
        self.rows = _CacheRows(config.num_hidden_layers, length)
        self.forwards = 0
        self.hidden: Tensor | None = None

    @property
    def cache(self) -> KVCache:
        """The cache; there is one after the first forward."""
        return self.rows.cache

    def read(self, tokens: Tensor, count: Tensor, keep: int) -> Tensor:
        """Read the beginning of each sequence.

        Args:
            tokens: int64 [B, T], the first ``count`` of each sequence are real.
            count: int64 [B].
            keep: how many last real positions' logits are wanted; 0 for all T, where those behind ``count`` are
                garbage.

        Returns:
            Logits [B, keep or T, V].
        """
        width = tokens.shape[1]
        even = int(count.min()) == width
        positions = torch.arange(width, device=tokens.device)[None]
        seen = positions <= positions.mT
        logits = self._run(tokens, positions, seen[None], keep if even else 0)
        self.cache.advance(width if even else count)
        if even or not keep:
            return logits
        last = count[:, None] - keep + torch.arange(keep, device=tokens.device)
        return logits.gather(1, last.clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1]))

    def forward(self, tokens: Tensor, depth: Tensor, seen: Tensor) -> Tensor:
        """Run rows behind the cached ones; they stay uncommitted until the cache advances or commits.

        Args:
            tokens: int64 [B, T].
            depth: of the rows below the last cached token that all of them see, less one, int64 [B or 1, T].
            seen: bool [B or 1, T, M], which of the last M rows, the new ones included, each row sees.

        Returns:
            Logits [B, T, V].
        """
        slots, cache = seen.shape[2], self.cache
        earlier = slots - tokens.shape[1]
        prefix = cache.lengths - earlier
        if cache.common_length is not None:
            mask = F.pad(seen, (cache.common_length - earlier, 0), value=True)
        else:
            mask = _ragged(seen.expand(len(tokens), -1, -1), prefix, cache.bound + tokens.shape[1], cache.capacity)
        return self._run(tokens, prefix[:, None] + depth.clamp(min=0), mask, 0)

    def _run(self, tokens: Tensor, positions: Tensor, mask: Tensor, keep: int) -> Tensor:
        mask = mask[:, None]
        if self.eager:  # adds the mask to the scores, and a boolean one as 0 and 1
            dtype = self.model.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        self.forwards += 1
        output = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions.expand(len(tokens), -1),
            use_cache=True,
            logits_to_keep=keep,
            output_hidden_states=self.features,
            **{self._cache_argument: self.rows},
        )
        if self.features:
            self.hidden = output.hidden_states[-1]
        return output.logits


def _ragged(seen: Tensor, prefix: Tensor, keys: int, capacity: int) -> Tensor:
    """Mask [B, T, keys] of sequences whose draft rows begin behind prefixes of different lengths."""
    keys = min(keys, capacity)
    columns = torch.arange(keys, device=seen.device)
    slot = columns - prefix[:, None]
    inside = (slot >= 0) & (slot < seen.shape[2])
    drafted = seen.gather(2, slot.clamp(0, seen.shape[2] - 1)[:, None].expand(-1, seen.shape[1], -1))
    return (slot < 0)[:, None] | (inside[:, None] & drafted)
