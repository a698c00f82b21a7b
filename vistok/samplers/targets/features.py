"""Inner states of a decoder, as they enter some of its layers, without keeping those of all the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from vistok.errors import VistokError


@contextmanager
def states_entering(decoder: nn.Module, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """The states [B, T, D] that enter layers of a decoder during its forward, by layer.

    Args:
        decoder: has ``layers``, or a list of blocks under another name.
        layers: 0 to one less than there are; transformers' ``hidden_states`` counts alike.
    """
    found: dict[int, Tensor] = {}

    def keep(index: int, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        found[index] = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]

    wanted = set(layers)
    blocks = decoder_layers(decoder) if wanted else []
    handles = [blocks[i].register_forward_pre_hook(partial(keep, i), with_kwargs=True) for i in sorted(wanted)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(decoder: nn.Module) -> nn.ModuleList:
    """The layers of a decoder.

    Raises:
        VistokError: it does not hold them in one list.
    """
    count = decoder.config.get_text_config(decoder=True).num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise VistokError(
        f"{type(decoder).__name__} holds no list of its {count} layers, whose inner states are asked for."
    )
