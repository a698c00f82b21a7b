"""Where the pictures of an evaluation come from: a folder, or the batch files of ADM's evaluator.

Pictures are read as uint8, the form in which published numbers are taken, a batch at a time. Of each picture of a
folder only the name is kept, as its bytes, so that memory hardly grows with their number.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vistok.data.folders import list_files
from vistok.data.images import READABLE_SUFFIXES, load_image
from vistok.errors import VistokError


class Pictures(Protocol):
    """A finite, ordered set of pictures.

    Attributes:
        name: what a report calls it.
        digest: of names and sizes; the same on every machine, so that protocols can be compared.
        fingerprint: also of modification times: changes whenever a picture is written again, so that no cache is stale.
        left_out: what was passed over when the pictures were looked for, in readable parts.
    """

    name: str
    digest: str
    fingerprint: str
    left_out: tuple[str, ...]

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> list[Tensor]:
        """Returns pictures ``start`` to ``stop - 1``, each uint8 [3, H, W]; they may differ in size."""


class FolderPictures:
    """All pictures under a folder, at any depth, in the order of their names (:mod:`vistok.data.folders`).

    Raises:
        VistokError: no such folder, or no picture in it; on reading, an unreadable picture.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.name = os.path.basename(os.path.abspath(root))
        if self.root.is_file():
            raise VistokError(f"'{root}' is a file: {_mend(self.root)}.")
        listing = list_files(root, READABLE_SUFFIXES)
        self.left_out = listing.left_out
        if not listing.names:
            passed = f" (left out: {'; '.join(self.left_out)})" if self.left_out else ""
            raise VistokError(
                f"there is no picture in '{root}'{passed}: looked for {' '.join(sorted(READABLE_SUFFIXES))}."
            )
        names = [name.replace(os.sep, "/").encode("utf-8", "surrogateescape") for name in listing.names]
        self._ends = np.cumsum([len(name) for name in names])
        self._names = b"".join(names)
        sizes, times = hashlib.sha256(), hashlib.sha256()
        for name in names:
            state = os.stat(os.path.join(os.fsencode(root), name))
            sizes.update(b"%s %d\n" % (name, state.st_size))
            times.update(b"%s %d %d\n" % (name, state.st_size, state.st_mtime_ns))
        self.digest, self.fingerprint = sizes.hexdigest()[:12], times.hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._ends)

    def inside(self, index: int) -> str:
        """Returns the name of a picture relative to the folder, with forward slashes."""
        first = self._ends[index - 1] if index else 0
        return self._names[first : self._ends[index]].decode("utf-8", "surrogateescape")

    def path(self, index: int) -> Path:
        """Returns where a picture lies."""
        return self.root / self.inside(index)

    def batch(self, start: int, stop: int) -> list[Tensor]:
        return [
            torch.from_numpy(np.array(load_image(self.path(index)))).permute(2, 0, 1)
            for index in range(start, min(stop, len(self)))
        ]


def _mend(file: Path) -> str:
    """What to give instead of a file that is no set of pictures."""
    suffix = file.suffix.lower()
    if suffix == ".npy":
        return "give an .npz batch, as numpy.savez(name, arr_0=pictures) writes it"
    if suffix in (".zip", ".tar", ".gz", ".tgz"):
        return "unpack it and give the folder"
    if suffix in READABLE_SUFFIXES:
        return "give the folder that it lies in"
    return "give a folder of pictures or an .npz batch"


class NpzPictures:
    """The ``arr_0`` batch (uint8 [N, H, W, 3]) of a sample or reference file of ADM's evaluator.

    A stored member is mapped, a compressed one is read as a stream that is rewound when an earlier batch is asked for.

    Raises:
        VistokError: the file has no such member.
    """

    left_out = ()

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.name = self.path.name
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as member:
                info = archive.getinfo("arr_0.npy")
                version = np.lib.format.read_magic(member)
                read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                self.shape, fortran, dtype = read_header[version](member)
                self.offset = member.tell()
        except FileNotFoundError as error:
            raise VistokError(f"there is no file '{path}'.") from error
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise VistokError(f"'{path}' is no sample batch: expected an .npz with a uint8 array 'arr_0'.") from error
        if dtype != np.uint8 or fortran or len(self.shape) != 4 or self.shape[-1] != 3:
            raise VistokError(f"'{path}': arr_0 is {dtype} {list(self.shape)}, expected uint8 [N, H, W, 3].")
        self.stored = info.compress_type == zipfile.ZIP_STORED
        self.header_offset = info.header_offset
        self.digest = self.fingerprint = f"{info.CRC:08x}"  # of the content
        self._stream = None
        self._position = 0

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_stream": None, "_position": 0}  # a worker opens its own stream

    def batch(self, start: int, stop: int) -> list[Tensor]:
        try:
            array = self._map()[start:stop] if self.stored else self._read(start, min(stop, len(self)))
        except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise VistokError(f"'{self.path}' is damaged at picture {start} or behind it ({error}).") from error
        return list(torch.from_numpy(array.copy()).permute(0, 3, 1, 2))

    def _map(self) -> np.ndarray:
        with open(self.path, "rb") as file:
            file.seek(self.header_offset + 26)  # the local header ends with the lengths of the name and the extra field
            name, extra = np.frombuffer(file.read(4), "<u2").tolist()
        return np.memmap(self.path, np.uint8, "r", self.header_offset + 30 + name + extra + self.offset, self.shape)

    def _read(self, start: int, stop: int) -> np.ndarray:
        size = int(np.prod(self.shape[1:]))
        if self._stream is None or start * size < self._position:
            archive = zipfile.ZipFile(self.path)  # outlives this call; closes with the stream
            self._stream = archive.open("arr_0.npy")
            self._stream.read(self.offset)
            self._position = 0
        while self._position < start * size:
            self._position += len(self._stream.read(min(start * size - self._position, 1 << 24)))
        data = self._stream.read((stop - start) * size)
        self._position += len(data)
        return np.frombuffer(data, np.uint8).reshape(-1, *self.shape[1:])


def open_pictures(path: str | Path) -> Pictures:
    """Returns the pictures of a folder or of an ``.npz`` batch.

    Raises:
        VistokError: for anything else.
    """
    return NpzPictures(path) if Path(path).suffix == ".npz" else FolderPictures(path)
