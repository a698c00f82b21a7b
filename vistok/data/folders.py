"""The one rule by which folders are searched for files, and a count of what it leaves out.

Files and folders whose names begin with a dot are left out. Links are followed, as torchvision and clean-fid do; a
folder that several of them lead to is entered once, so a link to a parent does no harm.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vistok.errors import VistokError

_SHOWN = 3  # names of a kind that a sentence gives


@dataclass(frozen=True)
class Listing:
    """What was found under a folder.

    Attributes:
        names: paths relative to the folder, sorted as paths are: by folder, then by name.
        left_out: one readable part for each kind of what was passed over, e.g. ``"2 hidden folders (.git, .cache)"``.
    """

    names: list[str]
    left_out: tuple[str, ...]


def list_files(root: str | Path, suffixes: Collection[str], beside: Collection[str] = ()) -> Listing:
    """Returns the files under a folder, at any depth, that end in one of the suffixes.

    Args:
        root: the folder.
        suffixes: in lower case, with their dots; the case of names does not matter.
        beside: suffixes of files that belong to those, such as captions, and are not counted as left out.

    Raises:
        VistokError: there is no such folder, or one in it cannot be read.
    """
    if not os.path.isdir(root):
        exists = os.path.exists(root)
        raise VistokError(f"'{root}' is a file, not a folder." if exists else f"there is no folder '{root}'.")
    names: list[str] = []
    hidden_folders: list[str] = []
    hidden_files: list[str] = []
    broken: list[str] = []
    again: list[str] = []
    others: Counter[str] = Counter()
    entered: set[tuple[int, int]] = set()
    real, linked = [""], []  # folders to enter; links wait, so that a folder is known by its own name where it has one
    while real or linked:
        inside = real.pop() if real else linked.pop(0)
        folder = os.path.join(root, inside)
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in entered:
            again.append(inside)
            continue
        entered.add((state.st_dev, state.st_ino))
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            raise VistokError(f"cannot read the folder '{folder}': {error.strerror}.") from None
        for entry in entries:
            name, suffix = os.path.join(inside, entry.name), os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                if entry.name.startswith("."):
                    hidden_folders.append(name)
                else:
                    (linked if entry.is_symlink() else real).append(name)
            elif suffix not in suffixes:
                if not entry.name.startswith(".") and suffix not in beside:
                    others[suffix or entry.name] += 1
            elif entry.name.startswith("."):
                hidden_files.append(name)
            elif not entry.is_file():
                broken.append(name)
            else:
                names.append(name)
    parts = [
        f"{len(found)} {one if len(found) == 1 else many} ({_some(sorted(found))})"
        for one, many, found in (
            ("hidden folder", "hidden folders", hidden_folders),
            ("hidden file", "hidden files", hidden_files),
            ("broken link", "broken links", broken),
            ("further way to a folder", "further ways to folders", again),
        )
        if found
    ]
    if count := others.total():
        parts.append(f"{count} {'file' if count == 1 else 'files'} of other kinds ({_some(sorted(others))})")
    return Listing(sorted(names, key=_path_order), tuple(parts))


def warn_left_out(root: str | Path, left_out: Collection[str]) -> None:
    """Warns, in one process of several, of what of a folder was passed over, if anything was."""
    from vistok.runtime import process_rank

    if left_out and process_rank()[0] == 0:
        warnings.warn(f"of '{root}' was left out: {'; '.join(left_out)}", stacklevel=2)


def _path_order(name: str) -> bytes:
    return name.replace(os.sep, "\0").encode("utf-8", "surrogateescape")  # "/" comes before every other character


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
