"""A folder of pictures as a source: any sizes and modes, in subfolders or not, with captions or without."""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import ImageOps
from torch import Tensor

from vistok.data.folders import warn_left_out
from vistok.data.images import ImageFolder, center_crop, load_image, random_crop, to_tensor
from vistok.errors import VistokError
from vistok.train.sources.captions import SUFFIXES, read_captions
from vistok.train.sources.interface import Draw, PictureData, Source, in_passes

HELD_OUT_SHARE = 16  # one picture in so many is kept for evaluation


class FolderSource(Source):
    """Pictures of a folder, each once a pass in a new order; grey ones become RGB.

    The first folder below ``root`` that a picture lies in is its class; without folders all are of one class.

    Args:
        root: the folder.
        paths: its pictures.
        size: side in pixels of the squares that are cut from the pictures.
        seed: of their order and crops.
        classes: names of the folders.
        kept: the held-out pictures; none if None.
    """

    def __init__(
        self,
        root: Path,
        paths: Sequence[Path],
        size: int,
        seed: int,
        classes: tuple[str, ...],
        kept: FolderSource | None = None,
    ):
        self.root, self.paths, self.size, self.seed, self.classes = root, list(paths), size, seed, classes
        self.description = f"pictures of the folder '{root.name}'"
        self._kept = kept
        self._captions: list[str] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def draw(self, start: int, count: int) -> Draw:
        return in_passes(start, count, len(self), self.seed)

    def pictures(self, index: Tensor) -> Tensor:
        return torch.stack([to_tensor(center_crop(load_image(self.paths[i]), self.size)) for i in index.tolist()])

    def augmented(self, draw: Draw) -> Tensor:
        """Returns random crops, every other one mirrored, as LlamaGen's tokenizers are trained on."""
        pictures = []
        for i, number in zip(draw.index.tolist(), draw.passes.tolist(), strict=True):
            rng = random.Random(f"{self.seed} {i} {number}")
            picture = random_crop(load_image(self.paths[i]), self.size, rng)
            pictures.append(to_tensor(ImageOps.mirror(picture) if rng.random() < 0.5 else picture))
        return torch.stack(pictures)

    def captions(self, draw: Draw) -> list[str]:
        if self._captions is None:
            self._captions = read_captions(self.root, self.paths)
        return [self._captions[i] for i in draw.index.tolist()]

    def labels(self, index: Tensor) -> Tensor:
        if not self.classes:
            return torch.zeros_like(index)
        return torch.tensor([self._label(self.paths[i]) for i in index.tolist()])

    def _label(self, path: Path) -> int:
        name = _class_folder(self.root, path)
        if name not in self.classes:
            raise VistokError(
                f"the picture '{path}' is in none of the class folders {', '.join(self.classes)}: move it into one."
            )
        return self.classes.index(name)

    def held_out(self) -> FolderSource:
        return self._kept or self

    def check_classes(self) -> None:
        """Refuses pictures without a class, held-out ones as well, and warns of folders that nothing is learnt of.

        Raises:
            VistokError: a picture is in none of the class folders.
        """
        held_out = self.held_out()
        held_out.labels(torch.arange(len(held_out)))
        learnt = {self.classes[i] for i in set(self.labels(torch.arange(len(self))).tolist()) if self.classes}
        inside = os.path.realpath(held_out.root)
        for path in sorted(self.root.iterdir()):
            if path.name in learnt or path.name.startswith(".") or not path.is_dir():
                continue
            if path.name in self.classes:
                told = "all of its pictures are kept for evaluation, or cut by 'data.pictures'"
            elif Path(inside).is_relative_to(os.path.realpath(path)):
                continue
            else:
                told = "it holds no picture, and is no class"
            warnings.warn(f"nothing is learnt of '{path}': {told}", stacklevel=2)


def _class_folder(root: Path, path: Path) -> str:
    """The first folder below ``root`` that a picture lies in, or nothing."""
    return path.relative_to(root).parts[0] if path.parent != root else ""


def _pictures(root: Path) -> list[Path]:
    folder = ImageFolder(root, beside=SUFFIXES)
    warn_left_out(root, folder.left_out)
    return folder.paths


def _outside(root: Path, paths: list[Path], other: Path) -> list[Path]:
    """The pictures of ``root`` that do not lie in another folder below it."""
    inner, outer = os.path.realpath(other), os.path.realpath(root)
    if inner == outer or not Path(inner).is_relative_to(outer):
        return paths
    there = root / os.path.relpath(inner, outer)
    return [path for path in paths if not path.is_relative_to(there)]


def _shuffled(root: Path, paths: list[Path], seed: int) -> list[Path]:
    """The pictures in an order that those that stay keep when others come or go, so that a run that goes on without a
    broken picture evaluates on none that it was trained on.
    """

    def place(path: Path) -> bytes:
        return hashlib.sha256(os.fsencode(f"{seed} {path.relative_to(root).as_posix()}")).digest()

    return sorted(paths, key=place)


def open_folder(data: PictureData, size: int) -> FolderSource:
    """Returns the folder ``data.path`` as a source, with the held-out pictures that ``data`` names.

    Where one of the two folders lies in the other, its pictures are those of the inner one alone.

    Raises:
        VistokError: there is no such folder, it holds too few pictures, or ``data.pictures`` are more than it holds.
    """
    if data.path is None:
        raise VistokError("'data.source' is a folder, but none is named: add 'data.path'.")
    root = Path(data.path).expanduser()
    paths = _pictures(root)
    if data.held_out is not None:
        other = Path(data.held_out).expanduser()
        held = _outside(other, _pictures(other), root)
        paths = _outside(root, paths, other)
        if not paths or not held:
            here, there = (root, other) if held else (other, root)
            raise VistokError(f"all pictures in '{here}' lie in '{there}': name folders of different pictures.")
    elif len(paths) == 1:
        raise VistokError(
            f"'{root}' holds one picture, and one must be kept for evaluation: add pictures, or name a folder of "
            "others as 'data.held_out'."
        )
    classes = tuple(sorted({_class_folder(root, path) for path in paths} - {""}))
    paths = _shuffled(root, paths, data.seed)
    if data.held_out is not None:
        kept = FolderSource(other, held, size, data.seed, classes)
    else:
        count = max(1, len(paths) // HELD_OUT_SHARE)
        kept = FolderSource(root, paths[:count], size, data.seed, classes)
        paths = paths[count:]
    count = len(paths) if data.pictures is None else data.pictures
    if not 1 <= count <= len(paths):
        raise VistokError(f"'data.pictures' is {count}, but '{root}' has {len(paths)} pictures to train on.")
    return FolderSource(root, paths[:count], size, data.seed, classes, kept)
