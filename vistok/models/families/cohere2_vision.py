"""Cohere2 Vision (Command A Vision): square tiles through SigLIP with the whole picture last, 2x2 patches a token."""

from __future__ import annotations

from typing import Any

from PIL import Image

from vistok.models.families.encoded import SquareTiles


class Cohere2Vision(SquareTiles):
    """The family ``cohere2_vision``; tiles are pictures of their own."""

    def arrangement(self, images: Any, picture: Image.Image, tiles: int) -> tuple[int, int] | None:
        if tiles == 1:
            return 1, 1
        from transformers.models.cohere2_vision.image_processing_cohere2_vision import get_optimal_tiled_canvas

        side = (images.size["height"], images.size["width"])
        size = (picture.height, picture.width)
        cols, rows = get_optimal_tiled_canvas(size, side, images.min_patches, images.max_patches)
        return rows, cols
