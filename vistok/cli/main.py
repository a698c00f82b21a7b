"""The ``vistok`` command: thin commands over the Python calls. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import warnings
from pathlib import Path
from types import FrameType

import typer

from vistok.cli import (
    bench,
    compress,
    data,
    doctor,
    eval,
    ground,
    models,
    sample,
    samplers,
    studio,
    tokenize,
    train,
    write,
)
from vistok.cli.output import Commands
from vistok.cli.shared import add_commands
from vistok.errors import VistokError

app = typer.Typer(
    name="vistok",
    cls=Commands,
    help="Visual tokens: make them, thin them, generate them fast.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    add_completion=True,
)
former_options = {"allow_extra_args": True, "ignore_unknown_options": True}
add_commands(app, {"sample": sample.sample}, context_settings=former_options)
add_commands(
    app,
    {
        "write": write.write,
        "studio": studio.studio,
        "samplers": samplers.samplers,
        "models": models.models,
        "compress": compress.compress,
        "ground": ground.ground,
        "train": train.train,
        "tokenize": tokenize.tokenize,
        "detokenize": tokenize.detokenize,
        "doctor": doctor.doctor,
    },
)
app.add_typer(data.app, name="data")
app.add_typer(eval.app, name="eval")
app.add_typer(bench.app, name="bench")


INTERRUPTED = 130  # what typer exits with at a KeyboardInterrupt
_PACKAGE = str(Path(__file__).parents[1])
_format_warning = warnings.formatwarning


def _one_sentence(message, category, filename, lineno, line=None) -> str:
    """What is printed of a warning: the package's own without the line of source that gave it."""
    if issubclass(category, UserWarning) and filename.startswith(_PACKAGE):
        return f"vistok: {message}\n"
    return _format_warning(message, category, filename, lineno, line)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where Ctrl-C would be a KeyboardInterrupt."""


def _interrupt_on_sigterm() -> None:
    """Lets SIGTERM, as schedulers and containers send it, unwind the command as Ctrl-C does, so that nothing is left
    half-written; not of one process among several, which would wait for the others.
    """
    command = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != command:  # of a process that was forked
            os.kill(os.getpid(), number)
        raise Terminated

    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    if alone and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupt)


def _signal_of(stop: BaseException | None) -> signal.Signals:
    """The signal behind an exception, which typer has made an exit of."""
    while stop is not None and not isinstance(stop, KeyboardInterrupt):
        stop = stop.__cause__ or stop.__context__
    return signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT


def _run() -> None:
    """Runs the command, and ends with an exit.

    Raises:
        VistokError: what it prints could not be written: the disk is full.
    """
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries once more as it ends
        raise VistokError(f"cannot write what is printed: {error.strerror}; make room.") from None


def main() -> None:
    """Entry point: a user's mistake becomes one sentence on standard error and exit code 2, an interruption another one
    and 128 and the signal's number.
    """
    warnings.formatwarning = _one_sentence
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for terminals of few characters
    _interrupt_on_sigterm()
    try:
        _run()
    except VistokError as error:
        print(f"vistok: {error}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        print(
            "vistok: interrupted; no file is half-written, and sampling jobs, training runs and caches go on where "
            "they stopped, by the same command.",
            file=sys.stderr,
        )
        sys.exit(128 + _signal_of(stop))
