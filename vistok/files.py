"""Writing files so that nobody ever sees half of one, and reading those with a JSON object a line."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vistok.errors import VistokError


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    Raises:
        VistokError: the folder cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise VistokError(f"cannot write '{path}': {error.strerror}; choose another place.") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_writable(path: str | Path) -> None:
    """Refuse a place that a long job could not write its result to, before the job begins.

    Args:
        path: a file or a folder to be.

    Raises:
        VistokError: it cannot be made or written.
    """
    place = Path(path)
    if place.suffix and place.is_dir():
        raise VistokError(f"'{place}' is a folder: name a file in it.")
    while not place.exists():
        place = place.parent
    folder = place if place.is_dir() else place.parent
    if Path(path).parent != place and place.is_file() and place != Path(path):
        raise VistokError(f"cannot write '{path}': '{place}' is a file, not a folder.")
    if not os.access(folder, os.W_OK):
        raise VistokError(f"cannot write '{path}': no permission in '{folder}'; choose another place.")


def read_json_lines(path: str | Path, what: str = "file") -> list[tuple[int, dict[str, Any]]]:
    """Returns the objects of a file with one JSON object a line, each with the number of its line.

    A line ends with a line feed and nothing else: other separators, such as U+2028, are text. Blank lines, carriage
    returns and a byte order mark are passed over.

    Args:
        path: the file, in UTF-8.
        what: what the file is, for sentences, e.g. ``"captions file"``.

    Raises:
        VistokError: the file cannot be read, is no UTF-8 text, holds no line, or a line is no JSON object.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise VistokError(f"cannot read the {what} '{path}': {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise VistokError(f"the {what} '{path}' is no UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    records = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise VistokError(f"line {number} of '{path}' is not JSON ({error}): write one object a line.") from None
        if not isinstance(record, dict):
            raise VistokError(f"line {number} of '{path}' is no JSON object: write one {{...}} a line.")
        records.append((number, record))
    if not records:
        raise VistokError(f"the {what} '{path}' is empty.")
    return records
