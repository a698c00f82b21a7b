"""Captions of a folder's pictures: a line each in ``metadata.jsonl``, or a text file beside each picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vistok.data.caption_lines import METADATA, read_caption_lines
from vistok.errors import VistokError


def read_captions(root: Path, paths: Sequence[Path]) -> list[str]:
    """Returns the caption of each picture.

    They stand in ``metadata.jsonl`` in the folder, see ``read_caption_lines``; without that file ``cat.txt`` stands
    beside ``cat.jpg``. White space is joined to single spaces.

    Raises:
        VistokError: a picture has no caption, or the file cannot be read.
    """
    listed = root / METADATA
    known = None
    if listed.exists():
        known = {Path(line.name).as_posix(): _joined(line.caption) for line in read_caption_lines(listed)}
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


def _joined(text: str) -> str:
    return " ".join(text.split())
