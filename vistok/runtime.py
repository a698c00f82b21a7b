"""What work runs on: the device, the number format, and this process's place among those of a job."""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Collection
from datetime import timedelta
from typing import TYPE_CHECKING

import torch

from vistok.errors import VistokError, unknown_name

if TYPE_CHECKING:
    from accelerate import PartialState

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PATIENCE = timedelta(days=7)  # one process may have hours of work left when another is done
_DEVICE = re.compile(r"cpu|cuda(?::(?P<number>\d{1,4}))?")


def resolve_device(name: str | torch.device | None = None) -> torch.device:
    """Returns the device of a name, checked against this machine.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``; the GPU where there is one if None, else the CPU. Under
            ``accelerate launch`` a GPU without a number is this process's own. A ``torch.device`` is taken as it is.

    Raises:
        VistokError: the name is none of these, or this machine has no such device.
    """
    if isinstance(name, torch.device):
        return name
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match = _DEVICE.fullmatch(str(name))
    if match is None:
        raise VistokError(f"unknown device '{name}': use cpu, cuda or cuda:N.")
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise VistokError(f"the device is '{name}', but there is no CUDA device on this machine: use cpu.")
    number, count = int(match["number"] or os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if number < count:
        return torch.device("cuda", number)
    known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
    if match["number"] is None:
        raise VistokError(f"process {number} of this machine has no GPU of its own, it has {known}: start {count}.")
    raise VistokError(f"there is no '{name}' on this machine: use {known}, or cpu.")


def resolve_dtype(name: str | torch.dtype, known: Collection[str] = tuple(DTYPES), kind: str = "dtype") -> torch.dtype:
    """Returns the number format of a name; a ``torch.dtype`` is taken as it is.

    Args:
        name: e.g. ``bfloat16``.
        known: names of :data:`DTYPES` that serve here.
        kind: what the name stands for, for the sentence.

    Raises:
        VistokError: the name is none of those that serve.
    """
    if isinstance(name, torch.dtype):
        return name
    if name not in known:
        raise unknown_name(kind, name, list(known))
    return DTYPES[name]


def process_rank() -> tuple[int, int]:
    """Returns the number of this process and of all processes, as ``accelerate launch`` or ``torchrun`` tells them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def processes() -> PartialState:
    """Returns number, rank and device of this process; the first call joins the other processes, until this one ends.

    Without an accelerator the processes meet over gloo: left to itself, accelerate would take each of them for the only
    one unless its launcher was told about CPUs.
    """
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    atexit.unregister(_leave)
    atexit.register(_leave)
    return state


def _leave() -> None:
    """Part from the other processes: gloo's threads abort one that ends while they run."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
