"""Pictures with captions: a JSONL file, a folder that ``vistok sample`` wrote, or a set in GenEval's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from vistok.errors import VistokError

SAMPLE_CAPTIONS = "metadata.jsonl"
KEYS = (("image", "caption"), ("file", "text"))


class CaptionedPicture(NamedTuple):
    path: Path
    caption: str


def read_captions(images: str | Path, captions: str | Path | None = None) -> list[CaptionedPicture]:
    """Pictures and what they should show.

    Args:
        images: folder of the pictures.
        captions: JSONL with ``image`` (path below the folder) and ``caption``, or with ``file`` and ``text`` as in
            the ``metadata.jsonl`` of ``vistok sample``. None takes that file of the folder, or GenEval's layout.

    Raises:
        VistokError: an unreadable file, a line without the two entries, or a picture that does not exist.
    """
    images = Path(images)
    if captions is None and (images / SAMPLE_CAPTIONS).is_file():
        captions = images / SAMPLE_CAPTIONS
    if captions is None:
        from vistok.eval.geneval.folder import read_folders

        return [
            CaptionedPicture(path, prompt.metadata["prompt"])
            for prompt in read_folders(images)
            for path in prompt.images
        ]
    try:
        lines = Path(captions).read_text().splitlines()
    except OSError as error:
        raise VistokError(f"cannot read the captions '{captions}': {error.strerror}.") from error
    pictures = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            picture = next(
                CaptionedPicture(images / record[image], record[caption])
                for image, caption in KEYS
                if {image, caption} <= record.keys()
            )
        except (ValueError, TypeError, AttributeError, StopIteration) as error:
            raise VistokError(
                f'line {number} of \'{captions}\' is not {{"image": "a.png", "caption": "..."}}.'
            ) from error
        if not picture.path.is_file():
            raise VistokError(f"there is no picture '{picture.path}' (line {number} of '{captions}').")
        pictures.append(picture)
    if not pictures:
        raise VistokError(f"the captions file '{captions}' is empty.")
    return pictures
