"""Control pictures of ordinary pictures: Canny's edges, as ControlAR was trained on (arXiv 2410.02705)."""

from __future__ import annotations

import numpy as np
from PIL import Image

from vistok.data.decode import to_rgb
from vistok.errors import VistokError

LOW, HIGH = 100, 200  # ControlAR's


def canny(image: Image.Image, low: int = LOW, high: int = HIGH) -> Image.Image:
    """Returns white edges on black, of the image's size, in RGB.

    Args:
        image: a picture in any mode.
        low, high: gradients from which a pixel goes on with an edge, and from which it begins one.

    Raises:
        VistokError: thresholds out of order, or OpenCV is not installed.
    """
    if not 0 <= low <= high:
        raise VistokError(f"edges need thresholds 0 <= low <= high, got {low} and {high}.")
    try:
        import cv2
    except ImportError:
        raise VistokError(
            "Canny's edges need OpenCV, which is not installed: pip install opencv-python-headless (the extra "
            "vistok[control]), or give a picture of edges of your own."
        ) from None
    edges = cv2.Canny(np.ascontiguousarray(to_rgb(image)), low, high)
    return Image.fromarray(edges).convert("RGB")
