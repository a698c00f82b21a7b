"""Linear layers for few rows on a CPU: decode steps and draft verification, where reading the weights is the work.

ATen's product leaves half or more of the memory bandwidth unused at 1 to 16 rows. oneDNN's packed weights are faster by
measurement (docs/ops.md), with the input padded to 2 or 4 rows: oneDNN rounds a single row in another way, and on some
processors its kernel for 2 rows is slower than the one for 4.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_PACK_ROWS = 8  # row count for which oneDNN picks its layout
_plain: list[None] = []  # not empty while packed layers compute as plain ones


@contextmanager
def plain_linears() -> Iterator[None]:
    """While open, packed layers compute as plain ones, so that their operations can be counted."""
    _plain.append(None)
    try:
        yield
    finally:
        _plain.pop()


@cache
def least_rows(dtype: torch.dtype) -> int:
    """2 or 4, whichever number of rows this processor multiplies faster with a weight that no cache holds.

    Both give the same bits, so that what is measured decides about time alone.
    """
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(8192, 1024, dtype=dtype), _PACK_ROWS)

    def seconds(rows: int) -> float:
        x, times = torch.zeros(rows, 1024, dtype=dtype), []
        for _ in range(5):
            began = time.perf_counter()
            torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
            times.append(time.perf_counter() - began)
        return min(times)

    return min((2, 4), key=seconds)


class PackedLinear(nn.Linear):
    """`nn.Linear` that is fast for few rows on a CPU; same state dict, same result up to rounding.

    A row's result does not depend on the other rows, to the last bit. A packed copy of the weight, made when first
    needed and again after the weight has changed, doubles its memory. With gradients enabled and on other devices it is
    `nn.Linear`.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> PackedLinear:
        """Take over the weight and bias of a layer."""
        packed = cls.__new__(cls)
        nn.Module.__init__(packed)
        packed.in_features, packed.out_features = linear.in_features, linear.out_features
        packed.weight, packed.bias = linear.weight, linear.bias
        packed._packed = packed._packed_from = None
        return packed.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or _plain:
            return F.linear(x, self.weight, self.bias)
        flat = x.reshape(-1, self.in_features)
        rows, least = len(flat), least_rows(flat.dtype)
        if rows < least:
            flat = torch.cat([flat, flat.new_zeros(least - rows, self.in_features)])
        out = torch.ops.mkldnn._linear_pointwise(flat, self._packed_weight(), self.bias, "none", [], "")[:rows]
        return out.view(*x.shape[:-1], self.out_features)

    def _packed_weight(self) -> Tensor:
        weight = self.weight
        source = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._packed_from != source:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _PACK_ROWS)
            self._packed_from = source
        return self._packed

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_packed": None, "_packed_from": None}  # packed weights cannot be copied or pickled


def pack_linears(module: nn.Module) -> nn.Module:
    """Replace every `nn.Linear` below a CPU module by :class:`PackedLinear`, in place, for inference, and return the
    module.

    Does nothing where this build of PyTorch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return module
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16):
            setattr(module, name, PackedLinear.from_linear(child))
        else:
            pack_linears(child)
    return module
