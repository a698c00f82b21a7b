"""The folder layout of GenEval pictures: ``OUT/00000/metadata.jsonl`` and ``OUT/00000/samples/0000.png``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from vistok.data.images import save_image
from vistok.errors import VistokError
from vistok.eval.geneval.metadata import read_metadata, write_metadata
from vistok.files import read_json_lines

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
    """Writes the pictures of one prompt in the published layout.

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


class PromptSet(NamedTuple):
    """A set in the published layout.

    Args:
        prompts: those with pictures.
        missing: lines of the metadata file whose pictures are not there, with their numbers.
        left_out: what else lies in the folders, in readable parts.
    """

    prompts: list[PromptFolder]
    missing: list[tuple[int, dict]]
    left_out: tuple[str, ...]


def read_set(root: str | Path, metadata: str | Path | None = None) -> PromptSet:
    """Returns all prompts of a set and what the set lacks.

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
        raise VistokError(f"'{root}' is a file, not a folder." if root.exists() else f"there is no folder '{root}'.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and path.name.isdecimal())
    if not folders:
        raise VistokError(f"'{root}' is no GenEval set: expected sub-folders 00000, 00001... with samples/*.png.")
    by_number: dict[int, Path] = {}
    for folder in folders:
        if (other := by_number.setdefault(int(folder.name), folder)) != folder:
            raise VistokError(f"'{other}' and '{folder}' are both prompt {int(folder.name)}: remove one.")
    official = read_metadata(metadata) if metadata is not None else None
    prompts = [_read_folder(folder, official) for folder in folders]
    missing = [(i, record) for i, record in enumerate(official or ()) if i not in by_number]
    others = sum(len(list((folder / "samples").iterdir())) for folder in folders) - sum(len(p.images) for p in prompts)
    left_out = (f"{others} {'file' if others == 1 else 'files'} in samples/ not named 0000.png...",) if others else ()
    return PromptSet(prompts, missing, left_out)


def read_folders(root: str | Path, metadata: str | Path | None = None) -> list[PromptFolder]:
    """Returns the prompts of a set that have pictures; see :func:`read_set`."""
    return read_set(root, metadata).prompts


def _read_folder(folder: Path, official: list[dict] | None) -> PromptFolder:
    images = sorted(path for path in (folder / "samples").glob("*.png") if _PICTURE.fullmatch(path.name))
    if not images:
        raise VistokError(f"'{folder}' has no pictures samples/0000.png...: generate them or remove the folder.")
    own_file = folder / "metadata.jsonl"
    own = None
    if own_file.exists():
        own, *more = read_metadata(own_file)
        if more:
            raise VistokError(f"'{own_file}' has {1 + len(more)} lines, and a prompt's folder has one: split it.")
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
    """Returns the records of a ``results.jsonl``, also of the reference implementation's."""
    return [record for _, record in read_json_lines(path, "results file")]
