"""Captions of a folder's pictures: a line each in ``metadata.jsonl``, or a text file beside each picture."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from vistok.data.caption_lines import METADATA, read_caption_lines
from vistok.errors import VistokError

SHOWN = 3  # names that a sentence gives
SUFFIXES = frozenset({".txt", ".jsonl"})  # of files that captions stand in


def read_captions(root: Path, paths: Sequence[Path]) -> list[str]:
    """Returns the caption of each picture.

    They stand in ``metadata.jsonl`` in the folder, see ``read_caption_lines``; without that file ``cat.txt`` stands
    beside ``cat.jpg``. White space is joined to single spaces. What of the file is not read is told by a warning:
    pictures that are not there, and all captions of a picture but the last.

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
        return _joined(text.read_text(encoding="utf-8-sig")) if text.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise VistokError(f"cannot read the caption '{text}' as UTF-8 text ({error}): replace the file.") from None


def _from_lines(path: Path) -> dict[str, str]:
    captions: dict[str, str] = {}
    repeated: dict[str, None] = {}  # a set in order
    for line in read_caption_lines(path):
        file, caption = Path(line.name).as_posix(), _joined(line.caption)
        if captions.get(file, caption) != caption:
            repeated[file] = None
        captions[file] = caption
    if repeated:
        warnings.warn(
            f"'{path}' has several captions of {len(repeated)} pictures, the last is read: {_some([*repeated])}",
            stacklevel=3,
        )
    return captions


def _joined(text: str) -> str:
    return " ".join(text.split())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
