"""Pictures with captions: a JSONL file, a folder that ``vistok sample`` wrote, or a set in GenEval's layout."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vistok.data.caption_lines import METADATA, read_caption_lines
from vistok.data.folders import list_files
from vistok.data.images import READABLE_SUFFIXES
from vistok.errors import VistokError


class CaptionedPicture(NamedTuple):
    path: Path
    caption: str


def read_captions(images: str | Path, captions: str | Path | None = None) -> list[CaptionedPicture]:
    """Returns pictures and what they should show.

    Args:
        images: folder of the pictures.
        captions: JSONL with ``image`` (path below the folder) and ``caption``, see ``read_caption_lines``. None takes
            the ``metadata.jsonl`` of the folder, or GenEval's layout.

    Raises:
        VistokError: no folder, no captions, a file that ``read_caption_lines`` refuses, or a picture that does not
            exist.
    """
    images = Path(images)
    if not images.is_dir():
        raise VistokError(f"'{images}' is a file, not a folder." if images.exists() else f"no folder '{images}'.")
    if captions is None and (images / METADATA).is_file():
        captions = images / METADATA
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
    for name, caption, where in read_caption_lines(captions):
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
