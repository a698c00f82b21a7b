"""Folders of noise, for tests that any pictures serve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_noise(*folders: Path) -> None:
    """Writes twelve pictures of 20x20 pixels of noise into each of some new folders."""
    random = np.random.default_rng(0)
    for folder in folders:
        folder.mkdir()
        for i in range(12):
            array = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(array).save(folder / f"{i:02d}.png")
