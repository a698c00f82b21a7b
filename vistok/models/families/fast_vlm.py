"""FastVLM: square pictures through FastViT, whose last map of convolutions gives one token a place."""

from __future__ import annotations

from typing import Any

from PIL import Image
from torch import nn

from vistok.models.families.encoded import SquareTiles


class FastVlm(SquareTiles):
    """The family ``fast_vlm``; there is no attention among all tokens to read."""

    def modules(self, base: nn.Module) -> list[nn.Module]:
        return []

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        return None if getattr(images, "do_center_crop", False) else (1, 1)
