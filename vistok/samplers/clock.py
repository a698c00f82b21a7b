"""Seconds that work takes, as little disturbed by the machine's other work as its clocks allow."""

from __future__ import annotations

import time

import torch

_FINE = time.get_clock_info("thread_time").resolution < 1e-5  # on some systems it ticks with the scheduler alone


def seconds(device: torch.device | str) -> float:
    """Returns a reading to be subtracted from a later one of the same thread.

    Args:
        device: of the work. On a CPU the time counts that this thread was given; elsewhere wall time.
    """
    if _FINE and torch.device(device).type == "cpu":
        return time.thread_time()
    return time.perf_counter()
