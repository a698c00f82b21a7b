"""Rotary position embeddings (RoFormer, arXiv 2104.09864): tables, rotation, and their two layouts.

A table holds (cos, sin) in float32, one row a position. `rope_2d` is LlamaGen's table (arXiv 2406.06525):
the first half of the pairs turns with the row of the token, the second half with its column. Rows of a
conditioning prefix are all zero there, cos *and* sin, so that prefix queries and keys become zero vectors;
this is the published behaviour and not the identity rotation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.ops.dispatch import on_triton

Layout = Literal["interleaved", "half"]


class RotaryModule(nn.Module):
    """A module with a rotary table in its buffer ``rope``, which stays float32 when the module changes its dtype.

    Published models compute their tables in float32 and cast weights alone. A table rounded to bfloat16 is off by up to
    0.004 in every cosine, whatever the position; ``.to(device)`` moves it like any other buffer.
    """

    rope: Tensor | None  # (cos, sin), [positions, head_dim // 2, 2]; None of a network that turns nothing

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryModule:
        exact = self.rope
        super()._apply(fn, recurse)
        if exact is not None and self.rope.dtype != exact.dtype:
            self.rope = exact.to(self.rope.device)
        return self


def inverse_frequencies(rotary_dim: int, base: float = 10000.0, device: torch.device | None = None) -> Tensor:
    """Angle per position of each rotated pair, ``base**(-2j/rotary_dim)``, float32 [rotary_dim // 2].

    Float32, as the published models were trained: at position 1000 the angles already differ from float64
    by 1e-5.
    """
    return 1.0 / base ** (torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=device) / rotary_dim)


def _table(angles: Tensor, prefix: int) -> Tensor:
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([table.new_zeros(prefix, *table.shape[1:]), table])


def rope_1d(
    length: int, head_dim: int, base: float = 10000.0, prefix: int = 0, device: torch.device | None = None
) -> Tensor:
    """Rotary table of a sequence.

    Args:
        length: positions 0 .. length-1.
        head_dim: width of one head, even.
        base: rotary base.
        prefix: all-zero rows (cos = sin = 0) put before the first position.
        device: of the table.

    Returns:
        float32 [prefix + length, head_dim // 2, 2], (cos, sin) last.

    Raises:
        VistokError: if ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise VistokError(f"rope_1d rotates pairs and needs an even head_dim, got {head_dim}.")
    positions = torch.arange(length, dtype=torch.float32, device=device)
    return _table(positions[:, None] * inverse_frequencies(head_dim, base, device), prefix)


def rope_2d(
    grid_h: int,
    grid_w: int,
    head_dim: int,
    base: float = 10000.0,
    prefix: int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """LlamaGen's rotary table of a grid in raster order: row angles first, then column angles.

    Args:
        grid_h: rows of the token grid.
        grid_w: columns of the token grid.
        head_dim: width of one head, a multiple of 4.
        base: rotary base.
        prefix: all-zero rows (cos = sin = 0) put before the first token, one for each conditioning token.
        device: of the table.

    Returns:
        float32 [prefix + grid_h * grid_w, head_dim // 2, 2], (cos, sin) last.

    Raises:
        VistokError: if ``head_dim`` is not a multiple of 4.
    """
    rows = torch.arange(grid_h, dtype=torch.float32, device=device)
    columns = torch.arange(grid_w, dtype=torch.float32, device=device)
    return rope_places(torch.cartesian_prod(rows, columns).view(-1, 2), head_dim, base, prefix)


def rope_places(places: Tensor, head_dim: int, base: float = 10000.0, prefix: int = 0) -> Tensor:
    """The rotary table of ``rope_2d`` for tokens anywhere in the plane.

    Args:
        places: row and column of each token, float [N, 2]; they need not be whole.
        head_dim, base, prefix: see ``rope_2d``.

    Returns:
        float32 [prefix + N, head_dim // 2, 2], (cos, sin) last.

    Raises:
        VistokError: if ``head_dim`` is not a multiple of 4.
    """
    if head_dim % 4:
        raise VistokError(
            f"a rotary table of two axes splits the pairs between rows and columns and needs head_dim % 4 == 0, got "
            f"{head_dim}."
        )
    angles = places.float()[:, :, None] * inverse_frequencies(head_dim // 2, base, places.device)
    return _table(angles.flatten(1), prefix)


def apply_rope(x: Tensor, table: Tensor, layout: Layout = "interleaved") -> Tensor:
    """Rotate the first 2P features of each head, in float32 (float64 stays float64).

    Rotating q and k in one call (concatenated over heads) halves the launches of a decode step.

    Args:
        x: queries or keys [B, T, H, D].
        table: (cos, sin) of each token, [T, P, 2] or, with positions per sequence, [B, T, P, 2]; P <= D / 2.
        layout: ``"interleaved"`` turns pairs (2j, 2j+1), LlamaGen's; ``"half"`` turns pairs (j, j+P), Hugging
            Face Llama's.

    Returns:
        The rotated tensor, in x's dtype; features beyond 2P are passed through.

    Raises:
        VistokError: for an unknown layout.
    """
    if layout not in get_args(Layout):
        raise VistokError(f"unknown rotary layout '{layout}': use 'interleaved' or 'half'.")
    if on_triton(x) and x.stride(-1) == 1 and x.dtype != torch.float64:
        from vistok.ops.kernels.rope import rotate_rows

        return rotate_rows(x.transpose(1, 2), table.contiguous(), None, layout == "half").transpose(1, 2)
    return rotate(x, table.unsqueeze(-3), layout)


def rotate(x: Tensor, table: Tensor, layout: Layout) -> Tensor:
    """Torch reference of the rotation: x [..., D] by (cos, sin) broadcastable to [..., P, 2]."""
    rotary_dim = 2 * table.shape[-2]
    if rotary_dim < x.shape[-1]:
        return torch.cat([rotate(x[..., :rotary_dim], table, layout), x[..., rotary_dim:]], dim=-1)
    wide = x if x.dtype == torch.float64 else x.float()
    table = table.to(wide.dtype)
    if layout == "interleaved" and not torch.compiler.is_compiling():  # one complex product; Inductor has none
        wide = wide if wide.stride(-1) == 1 else wide.contiguous()
        turned = torch.view_as_complex(wide.unflatten(-1, (-1, 2))) * torch.view_as_complex(table)
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    cos, sin = table.unbind(-1)
    if layout == "interleaved":
        a, b = wide.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)
    a, b = wide.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)
