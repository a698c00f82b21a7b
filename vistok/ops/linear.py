"""Linear layers for few rows on a CPU: decode steps and draft verification, where reading the weights is the work.

ATen's product leaves half or more of the memory bandwidth unused at 1 to 16 rows. oneDNN's packed weights are faster by
measurement (docs/ops.md), with the input padded to 2 or 4 rows: oneDNN rounds a single row in another way, and on some
processors its kernel for 2 rows is slower than the one for 4.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ZERO = 128  # what stands for 0 in an input of 8 bits
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

    Both give the same bits, so that what is measured decides about time alone. The two take turns and the least time of
    each counts, which other work on the machine can hardly turn round.
    """
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(8192, 1024, dtype=dtype), _PACK_ROWS)
    inputs = {rows: torch.zeros(rows, 1024, dtype=dtype) for rows in (2, 4)}
    least = dict.fromkeys(inputs, math.inf)
    for _ in range(6):
        for rows, x in inputs.items():
            began = time.perf_counter()
            PackedLinear.product(x, weight, None)
            least[rows] = min(least[rows], time.perf_counter() - began)
    return min(least, key=least.get)


class PackedWeight:
    """The packed copy of one or several weights of the same input; made when first needed, and again after a change."""

    _value: Any = None
    _source: tuple | None = None

    def of(self, pack: Callable[[Tensor], Any], *weights: Tensor) -> Any:
        """Returns what ``pack`` makes of weights [out_i, in], one below the other."""
        source = tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in weights)
        if self._source != source:
            whole = weights[0].detach().contiguous() if len(weights) == 1 else torch.cat(weights).detach()
            self._value, self._source = pack(whole), source
        return self._value

    def __getstate__(self) -> dict:
        return {}  # packed weights cannot be copied or pickled


class PackedLinear(nn.Linear):
    """`nn.Linear` that is fast for few rows on a CPU; same state dict, same result up to rounding.

    A row's result does not depend on the other rows, to the last bit. A packed copy of the weight doubles its memory.
    With gradients enabled and on other devices it is `nn.Linear`.
    """

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> PackedLinear:
        """Take over the weight and bias of a layer."""
        packed = cls.__new__(cls)
        nn.Module.__init__(packed)
        packed.in_features, packed.out_features = linear.in_features, linear.out_features
        packed.weight, packed.bias = linear.weight, linear.bias
        packed._packed, packed._joint = PackedWeight(), PackedWeight()
        return packed.train(linear.training)

    @staticmethod
    def pack(weight: Tensor) -> Any:
        """What ``product`` reads in place of a weight [out, in]."""
        return torch.ops.mkldnn._reorder_linear_weight(weight, _PACK_ROWS)

    @staticmethod
    def product(x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
        """The layer's output [R, out] for at least ``least_rows`` inputs [R, in]."""
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    @property
    def applies(self) -> bool:
        """Whether a product takes the packed route now."""
        return self.weight.device.type == "cpu" and not torch.is_grad_enabled() and not _plain

    def forward(self, x: Tensor) -> Tensor:
        if not self.applies:
            return F.linear(x, self.weight, self.bias)
        return self._padded(x, self._packed.of(self.pack, self.weight), self.bias, self.out_features)

    def _padded(self, x: Tensor, packed: Any, bias: Tensor | None, width: int) -> Tensor:
        """The product of [..., in], [..., width]; few rows are padded by zeros."""
        flat = x.reshape(-1, x.shape[-1])
        rows, least = len(flat), least_rows(flat.dtype)
        if rows < least:
            flat = torch.cat([flat, flat.new_zeros(least - rows, flat.shape[-1])])
        return self.product(flat, packed, bias)[:rows].view(*x.shape[:-1], width)


class Int8Linear(PackedLinear):
    """`nn.Linear` in whole numbers of 8 bits on a CPU: weights scaled by output, inputs by row as they come.

    Sums are exact, so that a row's result does not depend on the other rows here either. ``weight`` stays as it is.
    """

    @staticmethod
    def pack(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weight in int8, packed, and the scale and (no) offset of its rows."""
        scale = weight.float().abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / 127
        whole = (weight.float() / scale[:, None]).round().to(torch.int8)
        packed = torch.ops.onednn.qlinear_prepack(whole, [_PACK_ROWS, weight.shape[1]])
        return packed, scale, torch.zeros(len(scale), dtype=torch.int64)

    @staticmethod
    def product(x: Tensor, packed: tuple[Tensor, Tensor, Tensor], bias: Tensor | None) -> Tensor:
        """The layer's output [R, out] for inputs [R, in]."""
        scale = x.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        # Without a sign: for signed inputs a processor that has VNNI and no AMX runs a loop hundreds of times slower.
        whole = (x / scale).round().add_(_ZERO).to(torch.uint8)
        out = torch.ops.onednn.qlinear_pointwise(
            whole, 1.0, _ZERO, *packed, None, 1.0, 0, torch.float32, "none", [], ""
        ).mul_(scale)
        return out if bias is None else out.add_(bias)


def joint(x: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """Returns what each of several layers without bias makes of one input; in one product where they are packed."""
    first = layers[0]
    if not (isinstance(first, PackedLinear) and first.applies and first.bias is None):
        return tuple(layer(x) for layer in layers)
    return joined(x, *layers).split([layer.out_features for layer in layers], -1)


def swiglu(x: Tensor, gate: nn.Linear, up: nn.Linear) -> Tensor:
    """Returns ``silu(gate(x)) * up(x)``, the inner state of a SwiGLU perceptron."""
    gated, raised = joint(x, gate, up)
    return F.silu(gated) * raised


def joined(x: Tensor, first: PackedLinear, *others: PackedLinear) -> Tensor:
    """Returns what packed layers without bias make of one input, one behind the other [..., sum of their outputs]."""
    layers = (first, *others)
    packed = first._joint.of(first.pack, *(layer.weight for layer in layers))
    return first._padded(x, packed, None, sum(layer.out_features for layer in layers))


def pack_linears(module: nn.Module, kind: type[PackedLinear] = PackedLinear) -> nn.Module:
    """Replace every `nn.Linear` below a CPU module by a packed one, in place, for inference, and return the module.

    Does nothing where this build of PyTorch has no oneDNN.
    """
    if not torch.backends.mkldnn.is_available():
        return module
    for name, child in module.named_children():
        if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16):
            setattr(module, name, kind.from_linear(child))
        else:
            pack_linears(child, kind)
    return module
