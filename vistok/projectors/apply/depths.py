"""Hooks that let tokens skip layers of a decoder: what p-MoD needs to run.

A layer of a mixture of depths sees the text and a share of the visual tokens; the others go past it, and all visual
tokens are weighed by the layer's router. How many tokens a layer sees follows from the prompts' counts and the layer's
share, so nothing is read from the device layer by layer. Each layer's cache is as long as what it saw.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.attach import Attachment
from vistok.models.huggingface import given_cache
from vistok.models.pruned import Stage, pruned_cache
from vistok.projectors.apply.layers import LayerRun, at_columns, last_columns
from vistok.projectors.methods.pmod import PMod

_WEIGHTS = "vistok_router_weights"  # [B, S', 1], among a mixed layer's arguments as far as its attention


class _Inside(NamedTuple):
    """A layer at work: what entered it [B, S, D], weights [B, S], the columns that it sees, and which are tokens."""

    hidden: Tensor
    weights: Tensor
    columns: Tensor
    there: Tensor


class DepthMixture(LayerRun):
    """Runs p-MoD in a decoder.

    Args:
        decoder: module with ``layers`` of the Llama family, whose states are the attention's and the MLP's sums.
        method: routers and shares.
        attachment: registers the hooks.
        earliest: the first layer that may see fewer tokens.

    Raises:
        VistokError: the decoder has other layers than the routers are of, or mixed ones that cannot be shortened.
    """

    def __init__(self, decoder: nn.Module, method: PMod, attachment: Attachment, earliest: int) -> None:
        super().__init__(method.name)
        self.method, self.count = method, len(decoder.layers)
        if self.count != len(method.ratios) or decoder.config.hidden_size != method.hidden_size:
            raise VistokError(
                f"these routers are of {len(method.ratios)} layers of width {method.hidden_size}, and this model has "
                f"{self.count} of width {decoder.config.hidden_size}: choose those of this model."
            )
        first = min(method.mixed)
        if first < earliest:
            raise VistokError(f"layer {first} sees all tokens in this model: let p-MoD begin at {earliest} or later.")
        self._check_attention(decoder, method.mixed)
        for index in method.mixed:
            layer = decoder.layers[index]
            if not hasattr(layer, "mlp"):
                name = type(layer).__name__
                raise VistokError(
                    f"{method.name} weighs what a layer's MLP adds, and {name} has none: take another model."
                )
            attachment.before(layer, self._enter)
            attachment.before(layer.self_attn, self._take)
            attachment.after(layer.mlp, self._weigh)
            attachment.after(layer, self._leave)
        self._texts: list[int] = []
        self._inside: _Inside | None = None
        self._weights: Tensor | None = None

    def begin(self, visual: Tensor, attention_mask: Tensor | None, prompt: int) -> None:
        super().begin(visual, attention_mask, prompt)
        running = self._running
        self._texts = (running.present & ~running.visual).sum(1).tolist()
        every = torch.arange(visual.shape[1], device=visual.device).expand(len(visual), -1)
        padded = any(text + whole < visual.shape[1] for text, whole in zip(self._texts, self.whole, strict=True))
        for index in range(min(self.method.mixed), self.count):
            running.add(index, Stage(every, running.present), padded)  # until the layer has chosen

    def end(self, cache: Any | None = None) -> Any:
        self._inside = None
        return super().end(cache)

    def _enter(self, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        cache, index, hidden = given_cache(kwargs), layer.self_attn.layer_idx, args[0]
        running = self._running
        if running is None:
            pruned = pruned_cache(cache)
            return None if pruned is None else (args, self._decoding(hidden, pruned, cache, index, kwargs))
        self._check_cache(cache)
        counts = [self.method.count(index, whole) for whole in self.whole]
        kept, weights = self.method.choose(index, hidden, running.visual, counts)
        lengths = [text + count for text, count in zip(self._texts, counts, strict=True)]
        columns, there = last_columns(kept | (running.present & ~running.visual), max(lengths))
        running.add(index, Stage(columns, there), min(lengths) < max(lengths))
        self._inside = _Inside(hidden, weights, columns, there)
        seen = at_columns(hidden, columns)
        kwargs = kwargs | {_WEIGHTS: weights.gather(1, columns)[..., None]}
        return (seen, *args[1:]), self._prefilled(seen, index, kwargs)

    def _take(self, attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Weights come with the arguments, which a checkpoint keeps to run the layer again, without ``_enter``."""
        self._weights = kwargs.get(_WEIGHTS)
        return args, {name: value for name, value in kwargs.items() if name != _WEIGHTS}

    def _weigh(self, mlp: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        weights, self._weights = self._weights, None
        if weights is None:
            return None
        if weights.requires_grad and not torch.is_grad_enabled():
            raise VistokError(
                f"reentrant checkpoints pass no gradient to the routers of {self.name}: enable checkpointing with "
                "{'use_reentrant': False}."
            )
        return output * weights

    def _leave(self, layer: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        inside, self._inside = self._inside, None
        if inside is None:
            return None
        whole = inside.hidden * inside.weights[..., None]
        index = inside.columns[..., None].expand_as(output)
        return whole.scatter(1, index, torch.where(inside.there[..., None], output, whole.gather(1, index)))
