"""Writing files so that nobody ever sees half of one, what a name says about the file or folder, and lines of JSON."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vistok.errors import VistokError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
# Endings of files that nobody means as a folder. Whatever else follows a dot (cfg-1.75, run.v2) is part of a name.
_OTHER_FILES = re.compile(
    r"\.(avif?|bin|csv|eps|gz|heic|html|ico|jfif|jp2|jsonl?|md|mov|mp4|np[yz]|p[bgn]m|pdf|ps|pth?|safetensors|svg|tar|tga"
    r"|txt|vtok|xml|ya?ml|zip)"
)
_LONGEST = 255  # bytes of a name on the file systems in use
_STEM = 32  # characters of a file's name that its temporary name keeps, so that long names stay within 255 bytes


def is_folder_target(path: str | Path, suffixes: Collection[str] = IMAGE_SUFFIXES) -> bool:
    """Returns whether results go into a folder of this name, and not into one file.

    A folder is what exists as one, or does not end in the suffix of a result: ``cfg-1.75-seed-0`` is a folder.

    Args:
        path: what the user named.
        suffixes: of files that can be written; by default those of pictures.

    Raises:
        VistokError: the name is that of another kind of file, such as ``out.pdf``.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if path.is_dir():
        return True
    if suffix in suffixes:
        return False
    known = [each for each in (".png", ".jpg", ".webp") if each in suffixes] or sorted(suffixes)
    if _names_file(path) or path.is_file():
        raise VistokError(
            f"'{path}' cannot be written as a {suffix or 'file without a suffix'}: end the name in "
            f"{' or '.join(known)}, or name a folder."
        )
    return True


def _names_file(path: Path) -> bool:
    suffix = path.suffix.lower()
    return suffix in IMAGE_SUFFIXES or _OTHER_FILES.fullmatch(suffix) is not None


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` to write to; renamed to ``path`` on success, removed on failure.

    A link is followed; what is no regular file, such as ``/dev/stdout``, is yielded itself.

    Raises:
        VistokError: the place cannot be written to, or is full.
    """
    path = Path(path)
    if os.path.exists(path) and not path.is_file() and not path.is_dir():
        yield path
        return
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        handle, name = tempfile.mkstemp(prefix=f".{target.stem[:_STEM]}.", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        raise VistokError(f"cannot write '{path}': {error.strerror}; choose another place.") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files that only their owner reads
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VistokError(f"cannot write '{path}': {error.strerror}; make room, or choose another place.") from None
        raise


def check_writable(path: str | Path, folder: bool | None = None) -> None:
    """Refuse a place that a long job could not write its result to, before the job begins.

    Args:
        path: a file or a folder to be.
        folder: which of the two it must be; either if None.

    Raises:
        VistokError: it cannot be made or written, or is the other of the two, or a folder to be is named like a file.
    """
    path = Path(path)
    if any(len(os.fsencode(part)) > _LONGEST for part in path.parts):
        raise VistokError(f"cannot write '{path}': a name in it has more than {_LONGEST} bytes; shorten it.")
    if folder is False and path.is_dir():
        raise VistokError(f"'{path}' is a folder: name a file in it.")
    if folder and path.exists() and not path.is_dir():
        raise VistokError(f"'{path}' is a file: name a folder.")
    if folder and not path.exists() and _names_file(path):
        raise VistokError(f"'{path}' is to be a folder, and its name is that of a file: leave {path.suffix} out.")
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if place != path and not place.is_dir():
        raise VistokError(f"cannot write '{path}': '{place}' is a file, not a folder.")
    parent = place if place.is_dir() else place.parent
    special = place == path and not place.is_file() and not place.is_dir()  # /dev/stdout is written in place
    if not os.access(path if special else parent, os.W_OK):
        raise VistokError(f"cannot write '{path}': no permission in '{parent}'; choose another place.")


def writable_folder(name: str | Path) -> Path:
    """Returns the folder of a name, where ``~`` is the user's, that something is saved to.

    Raises:
        VistokError: the name is empty, that of a file, or of a place that cannot be written; see ``check_writable``.
    """
    if not str(name).strip():
        raise VistokError("the folder to save to has no name: give one, or '.' for this folder.")
    folder = Path(os.path.expanduser(name))
    check_writable(folder, folder=True)
    return folder


def to_json(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON that every parser reads: a number that is none, or is infinite, becomes ``null``.

    Dataclasses become objects, paths strings, and numbers of numpy plain ones.
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write a value as by ``to_json``; the file is whole or absent."""
    text = to_json(value, indent) + "\n"
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, Path):
        return str(value)
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
