"""Latents to the tokens of generators over them, and back: square patches, channels outermost (arXiv 2406.11838)."""

from __future__ import annotations

from torch import Tensor


def patchify(latents: Tensor, patch: int) -> Tensor:
    """Latents [B, c, H, W] to tokens [B, L, c p p] in raster order."""
    grid = latents.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [B, c, h, p, w, p]
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, patch: int, columns: int) -> Tensor:
    """Tokens [B, L, c p p] in rows of ``columns`` to latents [B, c, H, W]."""
    grid = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, (-1, columns))  # [B, h, w, c, p, p]
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
