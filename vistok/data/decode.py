"""From a picture as a file holds it to RGB at eight bits, as a viewer shows it and not as ``convert("RGB")`` gives it.

- An orientation in the EXIF data is applied.
- Transparency is blended over white; what colour a fully transparent pixel hides does not matter.
- 16 bits are scaled, 65535 being white. Numbers of 32 bits have no agreed white: integers up to 255 and up to 65535 are
  taken for those of 8 and 16 bits, real numbers up to 1 and up to 255 for shares and bytes; others are refused.
- CMYK is converted without its colour profile, as are profiles of RGB left aside.
- Of an animated picture the first frame is read, of which a warning reminds once.
"""

from __future__ import annotations

import warnings

import numpy as np
from PIL import Image, ImageOps

from vistok.errors import VistokError

BACKGROUND = (255, 255, 255)
_SIXTEEN_BITS = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})
_ANIMATED = frozenset({"AVIF", "GIF", "PNG", "TIFF", "WEBP"})  # a second frame of others is no part of the picture
_said = False


def to_rgb(image: Image.Image, turn: bool = True, blend: bool = True, what: str = "the picture") -> Image.Image:
    """Returns the picture in RGB.

    Args:
        image: in any mode.
        turn: apply the EXIF orientation. Evaluations whose published numbers were taken without it leave it out.
        blend: blend transparency over white; otherwise it is dropped, so that the colours show that it hides, likewise.
        what: how to call it in an error.

    Raises:
        VistokError: its values are such that white is not known.
    """
    _say_animated(image, what)
    if turn:
        image = _turned(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.convert("RGB")  # a copy without the open file
    if image.mode in _SIXTEEN_BITS:
        return _from_grey(np.asarray(image).astype(np.float64) / 65535)
    if image.mode in ("I", "F"):
        return _from_grey(_shares(np.asarray(image).astype(np.float64), image.mode == "F", what))
    if blend and image.has_transparency_data:
        image = image.convert({"La": "LA"}.get(image.mode, image.mode)).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*BACKGROUND, 255)), image).convert("RGB")
    return image.convert("RGB")


def _say_animated(image: Image.Image, what: str) -> None:
    global _said
    frames = getattr(image, "n_frames", 1) if image.format in _ANIMATED and not _said else 1
    if frames > 1:
        _said = True
        warnings.warn(f"{what} has {frames} frames; of such pictures the first alone is read", stacklevel=3)


def _turned(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError, OSError, OverflowError):  # damaged EXIF says nothing
        return image


def _shares(values: np.ndarray, real: bool, what: str) -> np.ndarray:
    """Shares of white, [0, 1], of 32-bit values."""
    least, largest = float(values.min()), float(values.max())  # both are NaN where a value is
    ranges = (1.0, 255.0) if real else (255.0, 65535.0)
    white = next((white for white in ranges if largest <= white), None)
    if white is None or not least >= 0:
        kind, known = ("real numbers", "0 to 1 or 0 to 255") if real else ("32-bit integers", "0 to 255 or 0 to 65535")
        raise VistokError(
            f"{what} holds {kind} from {least:.6g} to {largest:.6g}, of which white is not known: scale it to {known}."
        )
    return values / white


def _from_grey(shares: np.ndarray) -> Image.Image:
    return Image.fromarray(np.floor(shares * 255 + 0.5).astype(np.uint8)).convert("RGB")
