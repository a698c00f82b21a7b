"""Captions of a folder's pictures: a line each in ``metadata.jsonl``, or a text file beside each picture."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from vistok.errors import VistokError

METADATA = "metadata.jsonl"
SHOWN = 3  # names that a sentence gives
SUFFIXES = frozenset({".txt", ".jsonl"})  # of files that captions stand in
FILE_KEYS, TEXT_KEYS = ("file", "file_name"), ("caption", "text")


def read_captions(root: Path, paths: Sequence[Path]) -> list[str]:
    """Returns the caption of each picture.

    ``metadata.jsonl`` in the folder names pictures by ``file`` (or ``file_name``) and holds ``caption`` (or ``text``),
    as ``vistok data scenes`` and image folders of ``datasets`` have it. Without that file ``cat.txt`` stands beside
    ``cat.jpg``. What of the file is not read is told by a warning: pictures that are not there, and all captions of a
    picture but the last.

    Raises:
        VistokError: a picture has no caption, or the file cannot be read.
    """
    listed = root / METADATA
    known = _from_lines(listed) if listed.exists() else None
    if absent := [file for file in known or () if not (root / file).exists()]:
        warnings.warn(
            f"'{listed}' has captions of {len(absent)} files that are not there: {_some(absent)}", stacklevel=2
        )
    captions = []
    for path in paths:
        caption = known.get(path.relative_to(root).as_posix()) if known is not None else _beside(path)
        if not caption:
            place = f"'{listed}'" if known is not None else f"'{path.with_suffix('.txt')}'"
            raise VistokError(
                f"the picture '{path}' has no caption in {place}: write one there, or take the picture out "
                f"(captions are read from {METADATA}, or from a .txt beside each picture)."
            )
        captions.append(caption)
    return captions


def _beside(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    try:
        return " ".join(text.read_text(encoding="utf-8-sig").split()) if text.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise VistokError(f"cannot read the caption '{text}' as UTF-8 text ({error}): replace the file.") from None


def _from_lines(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise VistokError(f"cannot read '{path}' as UTF-8 text ({error}): replace the file.") from None
    captions: dict[str, str] = {}
    repeated: dict[str, None] = {}  # a set in order
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            file = next(entry[key] for key in FILE_KEYS if key in entry)
            caption = next(entry[key] for key in TEXT_KEYS if key in entry)
        except (ValueError, TypeError, StopIteration):
            raise VistokError(
                f"line {number} of '{path}' is no JSON object with 'file' and 'caption': mend the line."
            ) from None
        if not isinstance(file, str) or not isinstance(caption, str):
            raise VistokError(
                f"line {number} of '{path}' must hold texts as file and caption, got {file!r}, {caption!r}."
            )
        file, caption = Path(file).as_posix(), " ".join(caption.split())
        if captions.get(file, caption) != caption:
            repeated[file] = None
        captions[file] = caption
    if repeated:
        warnings.warn(
            f"'{path}' has several captions of {len(repeated)} pictures, the last is read: {_some([*repeated])}",
            stacklevel=3,
        )
    return captions


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
