"""A folder of volumes as a source: ``.npy`` arrays [D, H, W] of numbers, as microscopes give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vistok.data.folders import list_files, warn_left_out
from vistok.errors import VistokError
from vistok.ops.noise import derive_seed
from vistok.train.sources.interface import Draw, PictureData, Source, in_passes

SUFFIX = ".npy"


class VolumeSource(Source):
    """Random blocks of volumes, of which nothing else is read, scaled to [0, 1] by their own least and largest value.

    Args:
        root: the folder.
        paths: its volumes.
        sides: depth, height and width of a block.
        seed: of their order and places.
        kept: the held-out volumes; the same if None.
    """

    classes: tuple[str, ...] = ()

    def __init__(
        self, root: Path, paths: list[Path], sides: tuple[int, ...], seed: int, kept: VolumeSource | None = None
    ):
        self.paths, self.sides, self.seed, self._kept = paths, sides, seed, kept
        self.size = sides[-1]
        self.description = f"volumes of the folder '{root.name}'"

    def __len__(self) -> int:
        return len(self.paths)

    def draw(self, start: int, count: int) -> Draw:
        return in_passes(start, count, len(self), self.seed)

    def pictures(self, index: Tensor) -> Tensor:
        """Returns the middle blocks, [B, 1, D, H, W] in [0, 1]."""
        return torch.stack([self._block(int(i), None) for i in index])

    def augmented(self, draw: Draw) -> Tensor:
        """Returns random blocks, [B, 1, D, H, W] in [0, 1]."""
        pairs = zip(draw.index.tolist(), draw.passes.tolist(), strict=True)
        return torch.stack([self._block(i, derive_seed(self.seed, i, number)) for i, number in pairs])

    def _block(self, number: int, seed: int | None) -> Tensor:
        volume = open_volume(self.paths[number], self.sides)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        places = []
        for length, side in zip(volume.shape, self.sides, strict=True):
            room = length - side
            at = room // 2 if generator is None else int(torch.randint(room + 1, (), generator=generator))
            places.append(slice(at, at + side))
        block = torch.from_numpy(volume[tuple(places)].astype(np.float32))
        if not bool(block.isfinite().all()):
            raise VistokError(f"the volume '{self.paths[number]}' holds values that are not finite numbers: mend it.")
        least, most = block.min(), block.max()
        return ((block - least) / (most - least).clamp(min=1e-12))[None]

    def captions(self, draw: Draw) -> list[str]:
        raise VistokError("volumes have no captions: train on pictures.")

    def labels(self, index: Tensor) -> Tensor:
        raise VistokError("volumes have no classes: train on pictures.")

    def held_out(self) -> VolumeSource:
        return self._kept or self


def open_volume(path: Path, sides: tuple[int, ...]) -> np.ndarray:
    """Returns a volume as it lies on the disk, [D, H, W], at least as large as a block.

    Raises:
        VistokError: it is no array of three dimensions of numbers, or smaller than a block.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise VistokError(f"cannot read the volume '{path}' ({error}): write it with numpy.save.") from None
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "biuf":
        shape = f"{getattr(array, 'dtype', type(array).__name__)} {list(getattr(array, 'shape', ()))}"
        raise VistokError(f"the volume '{path}' is {shape}: numbers [D, H, W] are needed.")
    if any(has < wants for has, wants in zip(array.shape, sides, strict=True)):
        raise VistokError(
            f"the volume '{path}' is {list(array.shape)}, smaller than a block {list(sides)}: leave it out."
        )
    return array


def open_volumes(data: PictureData, sides: tuple[int, ...]) -> VolumeSource:
    """Returns the volumes of ``data.path``; one in sixteen, or those of ``data.held_out``, are evaluated on.

    Raises:
        VistokError: there is no such folder, no volume in it, or ``data.pictures`` are more than it holds.
    """
    root, paths = _volumes(data.path, "path")
    count = len(paths) if data.pictures is None else data.pictures
    if not 1 <= count <= len(paths):
        raise VistokError(f"'data.pictures' is {count}, but '{root}' has {len(paths)} volumes.")
    paths = paths[:count]
    if data.held_out is not None:
        _, held = _volumes(data.held_out, "held_out")
    else:
        held = paths[::16] if len(paths) > 1 else paths
        paths = [path for path in paths if path not in held] or paths
    return VolumeSource(root, paths, sides, data.seed, VolumeSource(root, held, sides, data.seed))


def _volumes(name: str | None, entry: str) -> tuple[Path, list[Path]]:
    """A folder that an entry of ``data`` names, and its volumes."""
    if name is None:
        raise VistokError("'data.source: volumes' needs 'data.path', a folder of .npy arrays.")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise VistokError(f"'data.{entry}' names no folder: '{folder}'.")
    listing = list_files(folder, frozenset({SUFFIX}))
    warn_left_out(folder, listing.left_out)
    if not listing.names:
        raise VistokError(f"there is no volume in the folder '{folder}' (looked for {SUFFIX}).")
    return folder, [folder / each for each in listing.names]
