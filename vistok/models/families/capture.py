"""Read queries and keys of a vision tower's layers while it runs, whatever its attention implementation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families.attention import LayerAttention


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """The attention modules of a tower in order: those with separate query and key projections."""
    return [module for module in tower.modules() if hasattr(module, "q_proj") and hasattr(module, "k_proj")]


@contextmanager
def captured_attention(tower: nn.Module, layers: tuple[int, ...], has_cls: bool) -> Iterator[dict[int, LayerAttention]]:
    """Collect the first query and all keys of some layers during the tower's forward.

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
    absent = [layer for layer in layers if not 0 <= layer < len(modules)]
    if absent:
        raise VistokError(
            f"{type(tower).__name__} offers {len(modules)} layers to read attention from, not layer {absent[0]}: "
            "choose another layer, or a method that reads none (divprune, tome, uniform, random)."
        )
    queries: dict[int, Tensor] = {}
    keys: dict[int, Tensor] = {}
    found: dict[int, LayerAttention] = {}

    def keep_query(layer: int, module: nn.Module, args: tuple, output: Tensor) -> None:
        queries[layer] = output[:, :1]

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
