"""The folder layout of GenEval pictures: ``OUT/00000/metadata.jsonl`` and ``OUT/00000/samples/0000.png``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vistok.data.images import save_image
from vistok.errors import VistokError
from vistok.eval.geneval.metadata import read_metadata, write_metadata

_PICTURE = re.compile(r"\d+\.png")


class PromptFolder(NamedTuple):
    """One prompt and its pictures.

    Args:
        name: all-digit name of the sub-folder.
        metadata: what is judged.
        images: paths in the order of their names.
        rewritten: whether the pictures were made from another wording than the metadata's prompt.
    """

    name: str
    metadata: dict
    images: list[Path]
    rewritten: bool


def write_prompt_folder(root: str | Path, index: int, metadata: dict, images: Sequence[Image.Image]) -> Path:
    """Write the pictures of one prompt in the published layout.

    Args:
        root: the set's folder.
        index: number of the prompt in the metadata file.
        metadata: its metadata.
        images: at least one picture; four are usual.
    """
    folder = Path(root) / f"{index:05d}"
    for i, image in enumerate(images):
        save_image(image, folder / "samples" / f"{i:04d}.png")
    write_metadata(folder / "metadata.jsonl", [metadata])
    return folder


def _same_objects(a: dict, b: dict) -> bool:
    return all(a.get(key) == b.get(key) for key in ("tag", "include", "exclude"))


def read_folders(root: str | Path, metadata: str | Path | None = None) -> list[PromptFolder]:
    """All prompts of a set.

    Args:
        root: folder with all-digit sub-folders; anything else in it is left alone.
        metadata: the metadata file that the set was made from. Sub-folders without a metadata of their own take their
            line of it; those that have one must ask for the same objects, and where the wording differs the pictures
            were made from rewritten prompts.

    Raises:
        VistokError: no such folder, no prompt in it, a prompt without pictures, or metadata that disagree.
    """
    root = Path(root)
    if not root.is_dir():
        raise VistokError(f"there is no folder '{root}'.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name.isdecimal())
    if not folders:
        raise VistokError(f"'{root}' is no GenEval set: expected sub-folders 00000, 00001... with samples/*.png.")
    official = read_metadata(metadata) if metadata is not None else None
    return [_read_folder(folder, official) for folder in folders]


def _read_folder(folder: Path, official: list[dict] | None) -> PromptFolder:
    images = sorted(path for path in (folder / "samples").glob("*.png") if _PICTURE.fullmatch(path.name))
    if not images:
        raise VistokError(f"'{folder}' has no pictures samples/0000.png...: generate them or remove the folder.")
    own_file = folder / "metadata.jsonl"
    own = read_metadata(own_file)[0] if own_file.exists() else None
    if official is None:
        if own is None:
            raise VistokError(f"'{folder}' has no metadata.jsonl: add it, or give the metadata file with --metadata.")
        return PromptFolder(folder.name, own, images, rewritten=False)
    index = int(folder.name)
    if index >= len(official):
        raise VistokError(f"'{folder}' has no line in the metadata file, which has {len(official)}.")
    wanted = official[index]
    if own is not None and not _same_objects(own, wanted):
        raise VistokError(f"'{own_file}' asks for other objects than line {index + 1} of the metadata file.")
    rewritten = own is not None and own["prompt"] != wanted["prompt"]
    return PromptFolder(folder.name, wanted, images, rewritten)


def read_results(path: str | Path) -> list[dict]:
    """Records of a ``results.jsonl``, also of the reference implementation's."""
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
