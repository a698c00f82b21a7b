"""Pictures for the evaluation of tokenizers: a folder's, or held-out scenes of the embedded world."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from vistok.data.images import ImageFolder, grid, load_image, to_pil
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.data.vtok import TokenFile
from vistok.errors import VistokError
from vistok.ops.noise import derive_seed
from vistok.tokenizers.files import prepare
from vistok.tokenizers.interface import Capabilities, noise_of
from vistok.tokenizers.load import LoadedTokenizer

COLUMNS = 8  # of the pictures that are drawn
SIDE = 64  # of scenes, for tokenizers that take any size


@dataclass(frozen=True)
class PictureSource:
    """Pictures of one size, as a tokenizer takes them.

    Attributes:
        capabilities: of the tokenizer.
        folder: of pictures; held-out scenes if None.
        count: how many scenes, or how many of the folder's first pictures at most.
        size: side of the centre crop; by default what the tokenizer takes, or else 64 for scenes.
    """

    capabilities: Capabilities
    folder: Path | None = None
    count: int = 256
    size: int | None = None

    @property
    def name(self) -> str:
        """Returns what a report calls it."""
        return "held-out scenes" if self.folder is None else self.folder.resolve().name

    @cached_property
    def listing(self) -> ImageFolder:
        """Returns the folder's pictures and what was left out of them; there must be a folder."""
        return ImageFolder(self.folder)

    @property
    def total(self) -> int:
        """Returns how many pictures there are."""
        return self.count if self.folder is None else min(self.count, len(self.listing))

    def check_count(self, least: int, what: str) -> None:
        """Raise VistokError if there are fewer pictures than ``what`` needs."""
        if self.total < least:
            raise VistokError(f"{what} needs at least {least} pictures, and {self.name} gives {self.total}: take more.")

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yields pictures [B, 3, H, W] in [-1, 1].

        Raises:
            VistokError: no such folder, an unreadable picture, or pictures of several sizes.
        """
        if self.folder is None:
            side = self.size or self.capabilities.image_size or SIDE
            for start in range(0, self.count, batch_size):
                yield render(sample_scenes(min(batch_size, self.count - start), HELD_OUT, start), side)
            return
        paths, shape = self.listing.paths[: self.count], None
        for start in range(0, len(paths), batch_size):
            images = [
                prepare(load_image(path), self.capabilities, self.size, f"'{path}'")
                for path in paths[start : start + batch_size]
            ]
            shape = shape or images[0].shape
            if any(image.shape != shape for image in images):
                raise VistokError(f"the pictures in '{self.folder}' are of several sizes: give --size.")
            yield torch.stack(images)


@torch.inference_mode()
def draw_lengths(
    loaded: LoadedTokenizer, source: PictureSource, lengths: Sequence[int], columns: int = COLUMNS, seed: int = 0
) -> Image.Image:
    """Returns a picture that shows what first tokens are worth: a row for each number of tokens, the originals below.

    Args:
        loaded: the tokenizer.
        source: whose first pictures are shown.
        lengths: numbers of tokens.
        columns: pictures in a row, at most.
        seed: of tokenizers that decode by sampling; all rows begin with the same noise.

    Raises:
        VistokError: a length that the tokenizer does not decode.
    """
    images = next(source.batches(min(columns, source.total))).to(loaded.device)
    tokens = loaded.tokenizer.encode(images)
    rows = []
    for length in lengths:
        noise = noise_of(loaded.tokenizer, [derive_seed(seed, number) for number in range(len(images))])
        rows += to_pil(loaded.tokenizer.decode(tokens, length, **noise))
    return grid([*rows, *to_pil(images)], len(images))


def file_overhead(loaded: LoadedTokenizer, shape: tuple[int, ...]) -> int:
    """Returns the bytes of a ``.vtok`` file beside its packed tokens, for pictures whose tokens have this shape."""
    codebook = loaded.tokenizer.capabilities.codebook_size
    bits = loaded.tokenizer.capabilities.bits_per_token
    one = TokenFile(loaded.name, loaded.sha256, codebook, shape, torch.zeros(1, dtype=torch.long))
    return len(one.to_bytes()) - -(-bits // 8)
