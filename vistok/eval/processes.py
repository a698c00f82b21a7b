"""The processes of a job: one, or those that ``accelerate launch`` or ``torchrun`` started."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

PATIENCE = timedelta(days=7)  # one process may have hours of work left when another is done


def processes() -> PartialState:
    """Number, rank and device of this process; joins the others at the first call.

    Without an accelerator the processes meet over gloo: left to itself, accelerate would take each of them for the only
    one unless its launcher was told about CPUs.
    """
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
