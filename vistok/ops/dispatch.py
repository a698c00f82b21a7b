"""Which implementation of an op runs: its Triton kernel on CUDA tensors, its torch reference everywhere else."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def on_triton(*tensors: Tensor) -> bool:
    """Whether an op on these tensors runs its Triton kernel; kernels have no backward, so training never does."""
    if not (tensors[0].is_cuda and _has_triton()):
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
