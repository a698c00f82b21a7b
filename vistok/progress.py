"""Progress on standard error, only where a person watches: bars, and a line that says what a command is busy with."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

SILENCE = 1.0  # seconds without a bar or any output, after which the line appears


def is_watched() -> bool:
    """Whether standard error is a terminal, and this process the one of a job that writes to it."""
    return sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """A progress bar; yields ``advance(amount=1)``. Silent where nobody watches."""
    if not is_watched():
        yield lambda amount=1: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _busy.aside(), Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total, completed=done)
        yield lambda amount=1: bar.advance(task, amount)


@contextmanager
def working(title: str) -> Iterator[None]:
    """Shows that something of unknown length goes on; silent where nobody watches."""
    if not is_watched():
        yield
        return
    from rich.console import Console

    with _busy.aside(), Console(stderr=True).status(title):
        yield


@contextmanager
def busy(title: str) -> Iterator[None]:
    """Shows that a command is at work whenever it has said nothing for a second; silent where nobody watches."""
    if not is_watched():
        yield
        return
    out, err = sys.stdout, sys.stderr
    _busy.begin(title, err)
    if out.isatty():
        sys.stdout = _Heard(out, _busy)  # type: ignore[assignment]  # a file in all but its class
    sys.stderr = _Heard(err, _busy)  # type: ignore[assignment]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, err
        _busy.end()


def at_rest() -> None:
    """Shows no more that the command is at work: from here on it waits for its user."""
    _busy.end()


class _Busy:
    """The line of :func:`busy`, which comes and goes in a thread of its own."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._title: str | None = None
        self._err: TextIO | None = None
        self._timer: threading.Timer | None = None
        self._line: Any = None

    def begin(self, title: str | None, err: TextIO | None) -> None:
        """Shows the line in a moment."""
        self._title, self._err = title, err
        self._wait()

    def end(self) -> None:
        """Takes the line away for good."""
        self._title = None
        self._hide()

    def heard(self, whole: bool) -> None:
        """Takes the line away as something is written, until it is silent again behind a ``whole`` line."""
        self._hide()
        if whole:
            self._wait()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves the terminal to a bar."""
        title, err = self._title, self._err
        self.end()
        try:
            yield
        finally:
            self.begin(title, err)

    def _wait(self) -> None:
        if self._title is not None:
            self._timer = threading.Timer(SILENCE, self._show)
            self._timer.daemon = True
            self._timer.start()

    def _show(self) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        with self._lock:
            if self._title is None or self._line is not None or threading.current_thread() is not self._timer:
                return
            look: dict[str, Any] = {"transient": True, "redirect_stdout": False, "redirect_stderr": False}
            self._line = Live(Spinner("dots", self._title), console=Console(file=self._err), **look)
            self._line.start(refresh=True)

    def _hide(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            line, self._timer, self._line = self._line, None, None
            if line is not None:
                line.stop()


_busy = _Busy()


class _Heard:
    """A terminal whose output makes way for itself."""

    def __init__(self, file: TextIO, line: _Busy):
        self._file, self._line = file, line

    def write(self, text: str) -> int:
        """Writes as the terminal does."""
        if text:
            self._line.heard(text.endswith("\n"))
        return self._file.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Hides transformers' own bars and remarks: what matters about loaded weights is checked and said by the caller."""
    from transformers.utils import logging

    enabled, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if enabled:
            logging.enable_progress_bar()
