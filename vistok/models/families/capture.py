"""Read queries and keys of a vision tower's layers while it runs, whatever its attention implementation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families.attention import LayerAttention


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """Returns the attention modules of a tower in order: those with separate query and key projections."""
    return [module for module in tower.modules() if hasattr(module, "q_proj") and hasattr(module, "k_proj")]


def check_layers(tower: str, layers: tuple[int, ...], total: int) -> None:
    """Refuses to read the attention of layers that a tower does not have.

    Raises:
        VistokError: it has not.
    """
    absent = [layer for layer in layers if not 0 <= layer < total]
    if absent:
        has = f"offers {total} layers to read attention from, not layer {absent[0]}" if total else "has none to read"
        raise VistokError(
            f"attention is wanted of {tower}, which {has}: choose another layer, or a method that reads none "
            "(divprune, tome, uniform, random)."
        )


@contextmanager
def captured_attention(tower: nn.Module, layers: tuple[int, ...], has_cls: bool) -> Iterator[dict[int, LayerAttention]]:
    """Collects keys of some layers during the tower's forward, and the CLS query or, without a CLS token, all queries.

    Args:
        tower: vision tower.
        layers: which, 0..L-1.
        has_cls: whether its sequence starts with a CLS token.

    Yields:
        A dictionary by layer, filled when the block ends.

    Raises:
        VistokError: the tower has no such layer, or projects queries and keys together.
    """
    modules = attention_layers(tower)
    check_layers(type(tower).__name__, layers, len(modules))
    queries: dict[int, Tensor] = {}
    keys: dict[int, Tensor] = {}
    found: dict[int, LayerAttention] = {}

    def keep_query(layer: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        queries[layer] = output[:, :1] if has_cls else output

    def keep_keys(layer: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        keys[layer] = output

    handles = []
    try:
        for layer in layers:
            attention = modules[layer]
            # InternVL normalises queries and keys over their full width before the heads part.
            query, key = (getattr(attention, f"{x}_norm", getattr(attention, f"{x}_proj")) for x in "qk")
            handles.append(query.register_forward_hook(partial(keep_query, layer)))
            handles.append(key.register_forward_hook(partial(keep_keys, layer)))
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        found[layer] = LayerAttention(queries[layer], keys[layer], modules[layer].num_heads, has_cls)


class Seen(NamedTuple):
    """What entered an attention module: states [V, S, C] or [S, C], and its rotary positions.

    These are cosines and sines, each [S, d]; in towers of timm one tensor of both.
    """

    module: nn.Module
    states: Tensor
    rotary: Any

    def queries_and_keys(self) -> tuple[Tensor, Tensor]:
        """Returns queries and keys as they meet, rotated where the tower rotates them, [V, S, H*d] each."""
        states = self.states if self.states.ndim == 3 else self.states[None]
        if hasattr(self.module, "qkv"):
            q, k, _ = self.module.qkv(states).chunk(3, -1)
        else:
            q, k = self.module.q_proj(states), self.module.k_proj(states)
        if self.rotary is not None:
            q, k = (self._rotated(x) for x in (q, k))
        return q, k

    def _rotated(self, x: Tensor) -> Tensor:
        """Half-split rotary positions, as all towers with free sizes have them."""
        x = x.unflatten(-1, (self.module.num_heads, -1)).float()
        cos, sin = (t.float().unsqueeze(-2) for t in self.rotary)
        first, second = x.chunk(2, -1)
        return (x * cos + torch.cat([-second, first], -1) * sin).flatten(-2)


@contextmanager
def seen_by(modules: list[nn.Module], layers: tuple[int, ...]) -> Iterator[dict[int, Seen]]:
    """Returns what enters some of a tower's attention modules during its forward, by layer."""
    found: dict[int, Seen] = {}

    def keep(layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        found[layer] = Seen(module, states, kwargs.get("position_embeddings", kwargs.get("rope")))

    handles = [
        modules[layer].register_forward_pre_hook(partial(keep, layer), with_kwargs=True) for layer in set(layers)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
