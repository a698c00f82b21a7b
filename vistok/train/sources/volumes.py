"""A folder of volumes as a source: ``.npy`` arrays [D, H, W] of numbers, as microscopes give them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vistok.data.folders import list_files
from vistok.errors import VistokError
from vistok.ops.noise import derive_seed
from vistok.train.sources.interface import Draw, PictureData, Source, in_passes

SUFFIX = ".npy"


class VolumeSource(Source):
    """Random blocks of volumes, scaled to [0, 1] by their own least and largest value.

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
        volume = read_volume(self.paths[number], self.sides)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for axis, side in enumerate(self.sides):
            room = volume.shape[axis] - side
            at = room // 2 if generator is None else int(torch.randint(room + 1, (), generator=generator))
            volume = volume.narrow(axis, at, side)
        least, most = volume.min(), volume.max()
        return ((volume - least) / (most - least).clamp(min=1e-12))[None]

    def captions(self, draw: Draw) -> list[str]:
        raise VistokError("volumes have no captions: train on pictures.")

    def labels(self, index: Tensor) -> Tensor:
        raise VistokError("volumes have no classes: train on pictures.")

    def held_out(self) -> VolumeSource:
        return self._kept or self


def read_volume(path: Path, sides: tuple[int, ...]) -> Tensor:
    """Returns a volume, float32 [D, H, W], at least as large as a block.

    Raises:
        VistokError: it is no array of three dimensions of finite numbers, or smaller than a block.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise VistokError(f"cannot read the volume '{path}' ({error}): write it with numpy.save.") from None
    if not isinstance(array, np.ndarray) or array.ndim != 3 or array.dtype.kind not in "biuf":
        shape = f"{getattr(array, 'dtype', type(array).__name__)} {list(getattr(array, 'shape', ()))}"
        raise VistokError(f"the volume '{path}' is {shape}: numbers [D, H, W] are needed.")
    if any(has < wants for has, wants in zip(array.shape, sides, strict=True)):
        raise VistokError(
            f"the volume '{path}' is {list(array.shape)}, smaller than a block {list(sides)}: leave it out."
        )
    volume = torch.from_numpy(array.astype(np.float32))
    if not bool(volume.isfinite().all()):
        raise VistokError(f"the volume '{path}' holds values that are not finite numbers: mend it.")
    return volume


def open_volumes(data: PictureData, sides: tuple[int, ...]) -> VolumeSource:
    """Returns the volumes of ``data.path``; one in sixteen, or those of ``data.held_out``, are evaluated on.

    Raises:
        VistokError: there is no such folder, or no volume in it.
    """
    root = _folder(data.path, "path")
    names = list_files(root, frozenset({SUFFIX})).names
    paths = [root / name for name in names][: data.pictures]
    if not paths:
        raise VistokError(f"there is no volume in the folder '{root}' (looked for {SUFFIX}).")
    if data.held_out is not None:
        other = _folder(data.held_out, "held_out")
        held = [other / name for name in list_files(other, frozenset({SUFFIX})).names]
        if not held:
            raise VistokError(f"there is no volume in the folder '{other}' (looked for {SUFFIX}).")
    else:
        held = paths[::16] if len(paths) > 1 else paths
        paths = [path for path in paths if path not in held] or paths
    return VolumeSource(root, paths, sides, data.seed, VolumeSource(root, held, sides, data.seed))


def _folder(name: str | None, entry: str) -> Path:
    if name is None:
        raise VistokError("'data.source: volumes' needs 'data.path', a folder of .npy arrays.")
    folder = Path(name).expanduser()
    if not folder.is_dir():
        raise VistokError(f"'data.{entry}' names no folder: '{folder}'.")
    return folder
