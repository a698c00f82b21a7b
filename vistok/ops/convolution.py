"""Convolutions on a CPU with packed weights.

ATen packs a convolution's weight anew at every call, and with one thread runs 1x1 convolutions by a loop of its own
that is slower than oneDNN's. A ReLU stays an operation of its own: oneDNN's makes 0 of what is no number.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vistok.ops.linear import PackedWeight


def packs_convolutions(x: Tensor) -> bool:
    """Returns whether :func:`packed_convolution` takes an input: on a CPU with oneDNN, where no gradient is wanted."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and torch.backends.mkldnn.is_available()
    )


def packed_convolution(x: Tensor, layer: nn.Conv2d, packed: PackedWeight) -> Tensor:
    """Returns ``layer(x)`` up to rounding.

    Args:
        x: [B, C, H, W], for which :func:`packs_convolutions` holds.
        layer: with a bias, and padded by zeros.
        packed: of this layer alone; its layout is the best for the shape that comes first, and serves any other.
    """
    places = [*map(list, (layer.padding, layer.stride, layer.dilation)), layer.groups]
    weight = packed.of(
        lambda weight: torch.ops.mkldnn._reorder_convolution_weight(weight, *places, list(x.shape)), layer.weight
    )
    return torch.ops.mkldnn._convolution_pointwise(x, weight, layer.bias, *places, "none", [], "")
