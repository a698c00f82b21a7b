"""Pictures with captions: a JSONL file, a folder that ``vistok sample`` wrote, or a set in GenEval's layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vistok.data.folders import list_files
from vistok.data.images import READABLE_SUFFIXES
from vistok.errors import VistokError
from vistok.files import read_json_lines

SAMPLE_CAPTIONS = "metadata.jsonl"
FILE_KEYS, TEXT_KEYS = ("image", "file", "file_name"), ("caption", "text")


class CaptionedPicture(NamedTuple):
    path: Path
    caption: str


def read_captions(images: str | Path, captions: str | Path | None = None) -> list[CaptionedPicture]:
    """Returns pictures and what they should show.

    Args:
        images: folder of the pictures.
        captions: JSONL with ``image`` (path below the folder; also ``file`` or ``file_name``) and ``caption`` (also
            ``text``), as the ``metadata.jsonl`` of ``vistok sample``, ``vistok data`` and image folders of ``datasets``
            have them. None takes that file of the folder, or GenEval's layout.

    Raises:
        VistokError: no folder, no captions, an unreadable file, a line without the two entries, an empty caption, or a
            picture that does not exist.
    """
    images = Path(images)
    if not images.is_dir():
        raise VistokError(f"'{images}' is a file, not a folder." if images.exists() else f"no folder '{images}'.")
    if captions is None and (images / SAMPLE_CAPTIONS).is_file():
        captions = images / SAMPLE_CAPTIONS
    if captions is None and not any(images.glob("*/samples")):
        raise VistokError(f"there are no captions with the pictures of '{images}': name a file with --captions.")
    if captions is None:
        from vistok.eval.geneval.folder import read_folders

        return [
            CaptionedPicture(path, prompt.metadata["prompt"])
            for prompt in read_folders(images)
            for path in prompt.images
        ]
    pictures = []
    for number, record in read_json_lines(captions, "captions file"):
        where = f"line {number} of '{captions}'"
        keys = [next((key for key in known if key in record), None) for known in (FILE_KEYS, TEXT_KEYS)]
        if None in keys:
            raise VistokError(f'{where} is not {{"image": "a.png", "caption": "..."}}.')
        name, caption = (record[key] for key in keys)
        if not isinstance(name, str) or not isinstance(caption, str):
            raise VistokError(f"{where} has {keys[0]} {name!r} and {keys[1]} {caption!r}: each must be one text.")
        if not caption.strip(" \t\r\n"):
            raise VistokError(f"the caption of '{name}' is empty ({where}): write what it should show.")
        path = images / name
        if not path.is_file():
            raise VistokError(f"there is no picture '{path}' ({where}).")
        pictures.append(CaptionedPicture(path, caption))
    return pictures


def without_caption(images: str | Path, pictures: Sequence[CaptionedPicture]) -> list[str]:
    """Returns the names of a folder's pictures that are none of those with captions."""
    known = {os.path.realpath(picture.path) for picture in pictures}
    names = list_files(images, READABLE_SUFFIXES).names
    return [name for name in names if os.path.realpath(Path(images, name)) not in known]
