"""Pictures in and out: crops, an image-folder dataset, bytes, grids and files that are whole or absent.

The crops are those of ADM (arXiv 2105.05233), which LlamaGen (arXiv 2406.06525) uses to extract codes and to
train its tokenizer. Pixels are PIL images outside and tensors in [-1, 1] inside.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vistok.data.decode import to_rgb
from vistok.data.folders import list_files
from vistok.errors import VistokError, unknown_name
from vistok.files import IMAGE_SUFFIXES, atomic_path, check_writable

STRIP = 64  # times its shorter side, from which on a picture is cut before a square of it is resized
LONGEST_DRAWN = 4096  # pixels along the longer side of a small picture that is drawn larger
# Of pictures in folders: those that are written, and other names of formats that are read.
READABLE_SUFFIXES = IMAGE_SUFFIXES | {".jfif", ".jpe", ".pbm", ".pgm", ".pnm"}


def _resize_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Halves with a box filter while at least twice too large, then bicubic: sharp and free of aliasing."""
    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), resample=Image.Resampling.BOX)
    scale = side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    return image.resize(size, resample=Image.Resampling.BICUBIC)


def _piece_of_strip(image: Image.Image, place: float) -> Image.Image:
    """The part of a strip that a square is cut from, since the whole of it, resized, would be gigabytes.

    Args:
        image: longer than ``STRIP`` times its shorter side.
        place: of the part, from 0, where the strip begins, to 1, where it ends.
    """
    keep = STRIP * min(image.size)
    left, top = (round(place * max(0, side - keep)) for side in image.size)
    return image.crop((left, top, left + min(keep, image.width), top + min(keep, image.height)))


def _is_strip(image: Image.Image) -> bool:
    return max(image.size) > STRIP * min(image.size)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """Returns the central ``size`` x ``size`` square of the image, whose shorter side was resized to ``size``."""
    if _is_strip(image):
        image = _piece_of_strip(image, 0.5)
    image = _resize_shorter_side(image, size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def random_crop(
    image: Image.Image,
    size: int,
    rng: random.Random,
    min_fraction: float = 0.8,
    max_fraction: float = 1.0,
) -> Image.Image:
    """Returns a random ``size`` x ``size`` square of the image, whose shorter side is resized to a random length.

    Args:
        image: any size; it is enlarged where it is too small.
        size: side of the crop.
        rng: draws the shorter side, then the row, then the column; before them, the part of a very long image.
        min_fraction, max_fraction: the crop covers between these fractions of the resized shorter side.
    """
    if _is_strip(image):
        image = _piece_of_strip(image, rng.random())
    side = rng.randrange(math.ceil(size / max_fraction), math.ceil(size / min_fraction) + 1)
    image = _resize_shorter_side(image, side)
    top = rng.randrange(image.height - size + 1)
    left = rng.randrange(image.width - size + 1)
    return image.crop((left, top, left + size, top + size))


def ten_crop(image: Image.Image, size: int, enlarge: float = 1.1) -> tuple[Image.Image, ...]:
    """Returns four corners and the centre of an enlarged centre crop, then those of its mirror image.

    Args:
        image: any size.
        size: side of the crops.
        enlarge: side of the centre crop that they are cut from over ``size`` (published: 1.1, 1.05).
    """
    from torchvision.transforms import functional

    return functional.ten_crop(center_crop(image, int(size * enlarge)), size)


def to_tensor(image: Image.Image) -> Tensor:
    """Returns a picture as float32 [3, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)
    return pixels.float().div(255).sub(0.5).div(0.5)


def to_uint8(pixels: Tensor) -> Tensor:
    """Returns pixels [..., 3, H, W] in [-1, 1] as bytes [..., H, W, 3], rounded as LlamaGen's evaluation does."""
    return (127.5 * pixels.float() + 128).clamp(0, 255).to(torch.uint8).movedim(-3, -1)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Returns pixels [B, 3, H, W] in [-1, 1] as B pictures."""
    return [Image.fromarray(array) for array in to_uint8(pixels).cpu().numpy()]


def grid(images: Sequence[Image.Image], columns: int | None = None, gap: int = 2) -> Image.Image:
    """Returns one picture with all the images, row by row on white.

    Args:
        images: at least one; cells are as large as the largest.
        columns: images in a row; by default the grid is as near to square as it can be.
        gap: pixels between the images.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width = max(image.width for image in images) + gap
    height = max(image.height for image in images) + gap
    sheet = Image.new("RGB", (columns * width - gap, rows * height - gap), "white")
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def magnification(size: tuple[int, int], least_side: int) -> int:
    """Returns how many times as large a picture of this size is drawn for its shorter side to reach ``least_side``.

    The longer side stays below ``LONGEST_DRAWN``, so that a strip of pixels does not become gigabytes.
    """
    return max(1, min(-(-least_side // min(size)), LONGEST_DRAWN // max(size)))


RESAMPLING = {"nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class Upscale:
    """Makes pictures larger; call it with one.

    Attributes:
        factor: 2 to 8 times as many pixels along each side.
        resample: ``lanczos`` is smooth, ``nearest`` repeats pixels.

    Raises:
        VistokError: another factor or another name.
    """

    factor: int
    resample: str = "lanczos"

    def __post_init__(self) -> None:
        if not 2 <= self.factor <= 8:
            raise VistokError(f"pictures are upscaled 2 to 8 times, got {self.factor}.")
        if self.resample not in RESAMPLING:
            raise unknown_name("way to upscale", self.resample, list(RESAMPLING))

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.resize((image.width * self.factor, image.height * self.factor), RESAMPLING[self.resample])


def load_image(path: str | Path, turn: bool = True, blend: bool = True) -> Image.Image:
    """Reads a picture as RGB, decoded in full, as :mod:`vistok.data.decode` says.

    Args:
        path: of the file.
        turn: apply the EXIF orientation.
        blend: blend transparency over white.

    Raises:
        VistokError: there is no such file, or it is not a picture that can be read.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return to_rgb(image, turn, blend, f"'{path}'")
    except VistokError:
        raise
    except FileNotFoundError as error:
        raise VistokError(f"there is no image '{path}'.") from error
    except (IsADirectoryError, PermissionError) as error:
        if os.path.isdir(path):  # Windows calls the opening of a folder a lack of permission
            raise VistokError(f"'{path}' is a folder, not an image: name a file in it.") from error
        raise VistokError(f"cannot read '{path}': {error.strerror}.") from error
    except Image.DecompressionBombError as error:
        raise VistokError(
            f"'{path}' has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, which Pillow refuses to open: make "
            "it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it."
        ) from error
    except Exception as error:  # decoders raise whatever a broken file makes them raise
        raise VistokError(f"cannot read '{path}' as an image: replace or remove the file.") from error


def _check_suffix(path: str | Path) -> None:
    if Path(path).suffix.lower() not in IMAGE_SUFFIXES:
        raise VistokError(f"cannot tell an image format from '{path}': end the name in .png, .jpg or .webp.")


def check_image_target(path: str | Path) -> None:
    """Refuse a picture that could not be written, before the work that it shows.

    Raises:
        VistokError: the suffix names no image format, or the place cannot be written to.
    """
    _check_suffix(path)
    check_writable(path, folder=False)


def save_image(image: Image.Image, path: str | Path) -> None:
    """Writes a picture in the format of the path's suffix; the file is whole or absent.

    Raises:
        VistokError: the suffix names no image format, or the file cannot be written.
    """
    _check_suffix(path)
    with atomic_path(path) as temporary:
        image.save(temporary)


class ImageFolder(Dataset):
    """All pictures under a folder, at any depth, in sorted order; see :mod:`vistok.data.folders` for what is left out.

    Args:
        root: the folder.
        transform: what is done to each RGB picture; by default the tensor [3, H, W] in [-1, 1].
        beside: see :func:`vistok.data.folders.list_files`.

    Raises:
        VistokError: there is no such folder, or no picture in it; on access, a picture cannot be read.
    """

    def __init__(
        self,
        root: str | Path,
        transform: Callable[[Image.Image], Any] = to_tensor,
        beside: Collection[str] = (),
    ) -> None:
        root = Path(root)
        listing = list_files(root, READABLE_SUFFIXES, beside)
        self.paths = [root / name for name in listing.names]
        self.left_out = listing.left_out
        if not self.paths:
            known = " ".join(sorted(READABLE_SUFFIXES))
            raise VistokError(f"there is no image in the folder '{root}' (looked for {known}).")
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return self.transform(load_image(self.paths[index]))
