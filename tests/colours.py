"""What colour a picture of scenes mainly shows."""

from __future__ import annotations

import torch

from vistok.data.images import to_tensor
from vistok.data.scenes import PALETTE


def main_colour(image) -> int:
    """Index of the palette colour that most saturated pixels of a picture are closest to."""
    pixels = (to_tensor(image).flatten(1).T + 1) / 2
    vivid = pixels[pixels.amax(1) - pixels.amin(1) > 0.35]
    return int(torch.cdist(vivid, PALETTE).argmin(1).bincount(minlength=len(PALETTE)).argmax())
