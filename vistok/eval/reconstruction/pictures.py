"""Pictures for the evaluation of tokenizers: a folder's, or held-out scenes of the embedded world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vistok.data.images import ImageFolder, load_image
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.data.vtok import TokenFile
from vistok.errors import VistokError
from vistok.tokenizers.files import prepare
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.load import LoadedTokenizer

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
        """What a report calls it."""
        return "held-out scenes" if self.folder is None else self.folder.name

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Pictures [B, 3, H, W] in [-1, 1].

        Raises:
            VistokError: no such folder, an unreadable picture, or pictures of several sizes.
        """
        if self.folder is None:
            side = self.size or self.capabilities.image_size or SIDE
            for start in range(0, self.count, batch_size):
                yield render(sample_scenes(min(batch_size, self.count - start), HELD_OUT, start), side)
            return
        paths = ImageFolder(self.folder).paths[: self.count]
        shape = None
        for start in range(0, len(paths), batch_size):
            images = [prepare(load_image(p), self.capabilities, self.size) for p in paths[start : start + batch_size]]
            shape = shape or images[0].shape
            if any(image.shape != shape for image in images):
                raise VistokError(f"the pictures in '{self.folder}' are of several sizes: give --size.")
            yield torch.stack(images)


def file_overhead(loaded: LoadedTokenizer, shape: tuple[int, ...]) -> int:
    """Bytes of a ``.vtok`` file beside its packed tokens, for pictures whose tokens have this shape."""
    codebook = loaded.tokenizer.capabilities.codebook_size
    bits = loaded.tokenizer.capabilities.bits_per_token
    one = TokenFile(loaded.name, loaded.sha256, codebook, shape, torch.zeros(1, dtype=torch.long))
    return len(one.to_bytes()) - -(-bits // 8)
