"""Pictures with captions: a JSONL file, a folder that ``vistok sample`` wrote, or a set in GenEval's layout."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from vistok.errors import VistokError
from vistok.files import read_json_lines

SAMPLE_CAPTIONS = "metadata.jsonl"
KEYS = (("image", "caption"), ("file", "text"))


class CaptionedPicture(NamedTuple):
    path: Path
    caption: str


def read_captions(images: str | Path, captions: str | Path | None = None) -> list[CaptionedPicture]:
    """Returns pictures and what they should show.

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
    pictures = []
    for number, record in read_json_lines(captions, "captions file"):
        where = f"line {number} of '{captions}'"
        keys = next((pair for pair in KEYS if record.keys() >= set(pair)), None)
        if keys is None:
            raise VistokError(f'{where} is not {{"image": "a.png", "caption": "..."}}.')
        name, caption = (record[key] for key in keys)
        if not isinstance(name, str) or not isinstance(caption, str):
            raise VistokError(f"{where} has {keys[0]} {name!r} and {keys[1]} {caption!r}: each must be one text.")
        path = images / name
        if not path.is_file():
            raise VistokError(f"there is no picture '{path}' ({where}).")
        pictures.append(CaptionedPicture(path, caption))
    return pictures
