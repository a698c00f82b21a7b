"""Captions of pictures in a file with a JSON object a line, such as the ``metadata.jsonl`` beside them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vistok.errors import VistokError
from vistok.files import read_json_lines

METADATA = "metadata.jsonl"  # the file's name in a folder of ``vistok sample``, ``vistok data`` and ``datasets``
NAME_KEYS, TEXT_KEYS = ("image", "file", "file_name"), ("caption", "text")


class CaptionLine(NamedTuple):
    """A picture's path below its folder, its caption, and where both stand, for sentences."""

    name: str
    caption: str
    where: str


def read_caption_lines(path: str | Path) -> list[CaptionLine]:
    """Returns the lines of a file that names pictures by ``image`` (also ``file`` or ``file_name``) and says by
    ``caption`` (also ``text``) what each shows.

    Raises:
        VistokError: an unreadable or empty file, a line without the two entries, or an empty caption.
    """
    lines = []
    for number, record in read_json_lines(path, "captions file"):
        where = f"line {number} of '{path}'"
        keys = [next((key for key in known if key in record), None) for known in (NAME_KEYS, TEXT_KEYS)]
        if None in keys:
            raise VistokError(f'{where} is not {{"image": "a.png", "caption": "..."}}.')
        name, caption = (record[key] for key in keys)
        if not isinstance(name, str) or not isinstance(caption, str):
            raise VistokError(f"{where} has {keys[0]} {name!r} and {keys[1]} {caption!r}: each must be one text.")
        if not caption.strip(" \t\r\n"):
            raise VistokError(f"the caption of '{name}' is empty ({where}): write what it should show.")
        lines.append(CaptionLine(name, caption, where))
    return lines
