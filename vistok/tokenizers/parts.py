"""Batches on a CPU in parts whose activations stay in its cache.

A network of convolutions or of attention writes far more bytes than a picture has. Those of a large batch leave the
cache between one layer and the next, and from 32 MiB on glibc gives every one of them back to the system and faults its
pages in anew. So a batch runs in as many parts as its largest activation asks for; memory does not grow with the batch.
On a GPU, and where gradients are wanted, a batch runs whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Method = TypeVar("Method", bound=Callable[..., Tensor])
UNKNOWN_CACHE = 16 << 20  # bytes, where the system does not tell
SHARE = 6  # of the cache by the largest activation: a layer's input, output and scratch, and weights, are there too
LARGEST = 8 << 20  # bytes of an activation, however large the cache


@cache
def activation_bytes() -> int:
    """Returns how many bytes the largest activation of a part may have: a sixth of the last cache, 8 MiB at most."""
    try:
        known = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (ValueError, OSError, AttributeError):  # not glibc
        known = 0
    return min((known if known > 0 else UNKNOWN_CACHE) // SHARE, LARGEST)


class _Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that an operation gives."""

    bytes = 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor):
                self.bytes = max(self.bytes, each.numel() * each.element_size())
        return out


def in_parts(method: Method) -> Method:
    """Makes a method of a network run a batch on a CPU in parts, and returns the rows of all of them.

    The method takes a batch [B, ...] first and gives one tensor [B, ...], each of whose rows depends on the same row of
    the batch alone. Other tensors with B rows among its arguments are shared out alike. It draws nothing at random.
    Real numbers come to it in the number format of the network's weights, whatever they are given in.

    How many rows make a part is found when such a batch first comes, from the largest activation of its first row (see
    :func:`activation_bytes`), and kept: the same batch always has the same parts.
    """

    @wraps(method)
    def run(self: torch.nn.Module, batch: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weights = next((each.dtype for each in self.parameters() if each.is_floating_point()), None)

        def real(value: Any) -> Any:
            known = weights is not None and isinstance(value, Tensor) and value.is_floating_point()
            return value.to(weights) if known else value

        batch, args, kwargs = real(batch), tuple(map(real, args)), {name: real(x) for name, x in kwargs.items()}
        rows = len(batch) if batch.ndim else 0
        if rows < 2 or batch.device.type != "cpu" or torch.is_grad_enabled():
            return method(self, batch, *args, **kwargs)

        def part(start: int, end: int) -> Tensor:
            def of(value: Any) -> Any:
                shared = isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows
                return value[start:end] if shared else value

            return method(self, batch[start:end], *map(of, args), **{name: of(value) for name, value in kwargs.items()})

        given = [batch, *args, *kwargs.values()]
        shapes = [(x.shape[1:], x.dtype) if isinstance(x, Tensor) else x for x in given if isinstance(x, (Tensor, int))]
        sizes = self.__dict__.setdefault("_rows_of_a_part", {})
        key = (method.__name__, weights, *shapes)
        done = []
        if key not in sizes:
            with _Largest() as largest:
                first = part(0, 1)
            sizes[key] = max(1, activation_bytes() // largest.bytes)
            done = [first] * (sizes[key] == 1)  # the bits of a row depend on how many rows there are
        count = -(-rows // sizes[key])
        ends = [rows * i // count for i in range(count + 1)]  # parts of about the same size
        done += [part(start, end) for start, end in zip(ends[len(done) :], ends[len(done) + 1 :], strict=False)]
        return torch.cat(done)

    return run  # type: ignore[return-value]
