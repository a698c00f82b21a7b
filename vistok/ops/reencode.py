"""Edits of cached text: positions after insertions and deletions, and keys re-encoded at them.

Positional integrity encoding (PIE, arXiv 2407.03157): a key rotated at position p becomes one rotated at p' by the
rotation p' - p, so an edited prefix keeps its cache instead of a new prefill. Values are only gathered. Keys whose
rotation cannot be undone (LlamaGen's zeroed prefix) or whose frequencies depend on the length (dynamic NTK) have no
re-encoding. The paper has no public code; everything is derived from its equations.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops.dispatch import on_triton
from vistok.ops.rope import Layout, rotate


class EditPlan(NamedTuple):
    """Where the rows of an edited sequence come from and go to."""

    kept: Tensor  # old rows that stay, in order, int64 [n]
    position: Tensor  # new position of each kept row, int64 [n]
    inserted: Tensor  # positions of the new rows, int64 [m]
    length: int  # n + m


def plan_edits(length: int, edits: Tensor) -> EditPlan:
    """Positions after several edits.

    Args:
        length: rows of the sequence before them.
        edits: (start, end, new length) of each in old coordinates, sorted and disjoint, int64 [E, 3]. Rows
            start .. end-1 are replaced by ``new length`` rows: (a, a, m) inserts, (a, b, 0) deletes.

    Raises:
        VistokError: if edits overlap, are unsorted, or leave the sequence.
    """
    start, end, new = edits.view(-1, 3).T.contiguous()
    ordered = (start <= end).all() and (end[:-1] <= start[1:]).all() and (new >= 0).all()
    if not ordered or (len(edits) and (int(start[0]) < 0 or int(end[-1]) > length)):
        raise VistokError(
            f"edits must be sorted, disjoint (start, end, new length) within 0..{length}, got {edits.tolist()}."
        )
    rows = torch.arange(length, device=edits.device)
    past = torch.searchsorted(end, rows, right=True)  # edits that end at or before the row
    inside = torch.searchsorted(start, rows, right=True) > past
    growth = torch.cat([new.new_zeros(1), (new - (end - start)).cumsum(0)])
    kept = rows[~inside]
    position = (rows + growth[past])[~inside]
    total = length + int(growth[-1])
    fresh = torch.ones(total, dtype=torch.bool, device=edits.device)
    fresh[position] = False
    return EditPlan(kept, position, fresh.nonzero().squeeze(1), total)


def reencode_keys(keys: Tensor, kept: Tensor, position: Tensor, frequencies: Tensor, layout: Layout = "half") -> Tensor:
    """Gather cached keys and turn them from their old positions (their rows) to new ones.

    Angles are formed in float64, so far moves stay exact; the rotation runs in float32 (float64 for float64 keys).

    Args:
        keys: [..., S, D], row i rotated at position i; for a cache, all layers of one sequence [L, H, S, D].
        kept: rows to keep, int64 [n].
        position: their new positions, int64 [n].
        frequencies: angle per position of each pair, [P]; divide them by the factor of linear scaling.
        layout: pairs of the rotation, see :func:`vistok.ops.rope.apply_rope`.

    Returns:
        [..., n, D].
    """
    angles = (position - kept)[:, None].double() * frequencies.double()
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    if on_triton(keys) and keys.stride(-1) == 1:
        from vistok.ops.kernels.rope import rotate_rows

        flat = keys.view(-1, *keys.shape[-3:]) if keys.dim() != 4 else keys
        return rotate_rows(flat, table.float(), kept, layout == "half").view(*keys.shape[:-2], len(kept), -1)
    return rotate(keys.index_select(-2, kept), table, layout)
