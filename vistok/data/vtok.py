"""``.vtok``: the tokens of one picture in a file, at ceil(log2 K) bits each.

All numbers are little-endian.

| bytes | what |
|---|---|
| 4 | ``VTOK`` |
| 1 | version: 1, or 2 for a picture in tiles |
| 1, then n | n, and the tokenizer's name in UTF-8 |
| 32 | SHA-256 of the tokenizer's weights |
| 4 | codebook size K |
| 4 | number of tokens in the file |
| 1, then 4 each | number of dimensions, and the shape of all of a picture's tokens; in tiles, of a tile's |
| 16, in version 2 | height and width of the picture, side and least overlap of its tiles, in pixels |
| ceil(number * bits / 8) | tokens, most significant bit first, zero bits at the end |
| 16 | BLAKE2b of all bytes before |

Tokens in tiles stand tile by tile, row by row, as many of each. The checksum finds damage and careless edits. It is no
signature: whoever forges tokens can also forge it.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vistok.data.tiles import Tiling
from vistok.errors import VistokError
from vistok.files import atomic_path

MAGIC, VERSION, TILED = b"VTOK", 1, 2
_CHECKSUM = 16
SUFFIX = ".vtok"


def bits_per_token(codebook_size: int) -> int:
    """ceil(log2 K), at least 1."""
    return max(1, (codebook_size - 1).bit_length())


def pack(tokens: Tensor, bits: int) -> bytes:
    """Tokens int64 [n] in [0, 2**bits) to bytes, most significant bit first."""
    values = tokens.cpu().numpy().astype(np.uint32)
    places = np.arange(bits - 1, -1, -1, dtype=np.uint32)
    return np.packbits((values[:, None] >> places & 1).astype(np.uint8)).tobytes()


def unpack(data: bytes, bits: int, count: int) -> Tensor:
    """The first ``count`` tokens of packed bytes, int64 [count]."""
    digits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    return torch.from_numpy(digits.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64)))


@dataclass(frozen=True)
class TokenFile:
    """The tokens of one picture and the tokenizer that they belong to.

    Attributes:
        tokenizer: its name.
        sha256: of its weights, in hex.
        codebook_size: K.
        shape: of all tokens of the picture, or of one of its tiles, e.g. (16, 16) or (256,).
        tokens: int64 [n], the first n of them in row-major order; of tiles, the first of each in turn.
        tiling: of a picture in tiles; None of one that is tokenized as a whole.
    """

    tokenizer: str
    sha256: str
    codebook_size: int
    shape: tuple[int, ...]
    tokens: Tensor
    tiling: Tiling | None = None

    @property
    def parts(self) -> int:
        """How many tiles there are; 1 of a picture that is tokenized as a whole."""
        return 1 if self.tiling is None else self.tiling.count

    def to_bytes(self) -> bytes:
        """The file's content.

        Raises:
            VistokError: tokens outside the codebook, or more than the shape holds.
        """
        self._check("these tokens")
        name = self.tokenizer.encode(errors="replace")  # of a folder, it may be no text
        if len(name) > 255:
            raise VistokError(f"the tokenizer's name '{self.tokenizer[:20]}...' is longer than 255 bytes: shorten it.")
        version = VERSION if self.tiling is None else TILED
        start = MAGIC + struct.pack("<BB", version, len(name)) + name + bytes.fromhex(self.sha256)
        dimensions = len(self.shape)
        sizes = struct.pack(f"<IIB{dimensions}I", self.codebook_size, len(self.tokens), dimensions, *self.shape)
        if self.tiling is not None:
            sizes += struct.pack("<4I", *astuple(self.tiling))
        body = start + sizes + pack(self.tokens, bits_per_token(self.codebook_size))
        return body + _checksum(body)

    @classmethod
    def from_bytes(cls, data: bytes, what: str = "the data") -> TokenFile:
        """Read a file's content.

        Args:
            data: all bytes.
            what: how to call it in an error.

        Raises:
            VistokError: no .vtok data, of another version, truncated or changed.
        """
        if not data.startswith(MAGIC):
            raise VistokError(f"{what} is not a {SUFFIX} file: make one with vistok tokenize.")
        if len(data) <= len(MAGIC) + _CHECKSUM or _checksum(data[:-_CHECKSUM]) != data[-_CHECKSUM:]:
            raise VistokError(f"{what} is truncated or was changed since it was written: make it again.")
        version = data[len(MAGIC)]
        if version not in (VERSION, TILED):
            raise VistokError(f"{what} is of version {version}, expected {VERSION} or {TILED}: update vistok.")
        try:
            found = cls._parse(data[len(MAGIC) + 1 : -_CHECKSUM], version == TILED)
        except (struct.error, ValueError, IndexError, VistokError) as error:
            raise VistokError(f"{what} has a header that makes no sense: make it again.") from error
        found._check(what)
        return found

    @classmethod
    def _parse(cls, data: bytes, tiled: bool) -> TokenFile:
        end = 1 + data[0]
        name, digest = data[1:end].decode(), data[end : end + 32].hex()
        size, count, dimensions = struct.unpack_from("<IIB", data, end + 32)
        shape = struct.unpack_from(f"<{dimensions}I", data, end + 41)
        end += 41 + 4 * dimensions
        tiling = Tiling(*struct.unpack_from("<4I", data, end)) if tiled else None
        packed, bits = data[end + 16 * tiled :], bits_per_token(size)
        if len(packed) != -(-count * bits // 8):
            raise ValueError("payload and number of tokens disagree")
        return cls(name, digest, size, shape, unpack(packed, bits, count), tiling)

    def _check(self, what: str) -> None:
        if self.tokens.ndim != 1 or self.tokens.is_floating_point() or not 1 <= self.codebook_size < 1 << 32:
            kind = f"{str(self.tokens.dtype).removeprefix('torch.')} {list(self.tokens.shape)}"
            raise VistokError(
                f"{what} are {kind} of {self.codebook_size} codes: a {SUFFIX} file holds indices int64 [n] below 2**32."
            )
        room, parts = math.prod(self.shape), self.parts
        count, rest = divmod(len(self.tokens), parts)
        if rest:
            raise VistokError(f"{what} hold {len(self.tokens)} tokens for {parts} tiles, which need as many each.")
        if not 1 <= count <= room:
            raise VistokError(f"{what} hold {count} tokens, but the shape {list(self.shape)} has room for 1 to {room}.")
        if int(self.tokens.min()) < 0 or int(self.tokens.max()) >= self.codebook_size:
            raise VistokError(f"{what} hold tokens outside the codebook of {self.codebook_size}: make them again.")

    def check_tokenizer(self, name: str, sha256: str, what: str = "the file") -> None:
        """Raise VistokError unless the tokens were made by the tokenizer of these weights."""
        if sha256 != self.sha256:
            raise VistokError(
                f"{what} was made by '{self.tokenizer}' (weights {self.sha256[:12]}), not by '{name}' ({sha256[:12]}): "
                "name the tokenizer that made it."
            )


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM).digest()


def read_vtok(path: str | Path) -> TokenFile:
    """Read a ``.vtok`` file.

    Raises:
        VistokError: it cannot be read, is no such file, truncated or changed.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise VistokError(f"cannot read '{path}' ({error.strerror}): check the path.") from error
    return TokenFile.from_bytes(data, f"'{path}'")


def write_vtok(path: str | Path, content: TokenFile) -> int:
    """Write a ``.vtok`` file, whole or not at all; its size in bytes."""
    data = content.to_bytes()
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    return len(data)
