"""Results that are shown while they are computed."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
BETWEEN = 0.12  # seconds, at least, between two states that are shown


class Stopped(Exception):
    """Raised inside the work when nobody looks any more."""


def streamed(work: Callable[[Callable[[Callable[[], T]], None]], T]) -> Iterator[T]:
    """Yields the states that some work shows, and its result as the last one.

    Args:
        work: runs in a thread of its own. It is given ``show``, which it calls with a function that makes a state; the
            function runs at once, or not at all where the last state was shown a moment ago.

    Raises:
        Exception: what the work raised.
    """
    states: queue.Queue[tuple[bool, T | BaseException]] = queue.Queue()
    stopped = threading.Event()
    last = 0.0

    def show(make: Callable[[], T]) -> None:
        nonlocal last
        if stopped.is_set():
            raise Stopped
        if time.monotonic() - last >= BETWEEN and states.empty():
            states.put((False, make()))
            last = time.monotonic()

    def run() -> None:
        try:
            states.put((True, work(show)))
        except Stopped:
            pass
        except BaseException as error:
            states.put((True, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        while True:
            last_one, state = states.get()
            if isinstance(state, BaseException):
                raise state
            yield state
            if last_one:
                return
    finally:
        stopped.set()
