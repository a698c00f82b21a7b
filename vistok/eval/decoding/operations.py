"""Counts the floating-point operations of a call, those of attention on a CPU included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from vistok.ops.linear import plain_linears


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def count_operations(call: Callable[[], Any]) -> int:
    """Returns how many operations a call takes, a multiplication and its addition as two.

    Products of matrices, convolutions and attention are counted, as ``torch.utils.flop_counter`` does, and nothing
    else; a mask saves nothing.
    """
    known = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with plain_linears(), FlopCounterMode(display=False, custom_mapping=known) as counter:
        call()
    return counter.get_total_flops()
