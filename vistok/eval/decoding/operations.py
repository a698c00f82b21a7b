"""Counts the floating-point operations of a call, those of attention on a CPU included.

``torch.utils.flop_counter.FlopCounterMode`` knows no attention of a CPU, and in inference mode its hooks fail on
weights that could be trained; its formulas are used here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from vistok.ops.linear import plain_linears


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


class _Counter(TorchDispatchMode):
    """Adds up the operations of what runs while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.known = flop_registry | {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = self.known.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:  # a compound is counted by its parts
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        out = func(*args, **kwargs)
        if formula is not None:
            self.count += formula(*args, **kwargs, out_val=out)
        return out


def count_operations(call: Callable[[], Any]) -> int:
    """Returns how many operations a call takes, a multiplication and its addition as two.

    Products of matrices, convolutions and attention are counted, and nothing else; a mask saves nothing.
    """
    with plain_linears(), _Counter() as counter:
        call()
    return counter.count
