"""The one KV cache: allocated once, per-sequence lengths, tree rows committed or cropped in place.

A step writes the keys and values of its T new tokens behind the rows in use (`write`, layer by layer) and
then either keeps all of them (`advance`) or, after a draft was verified, the accepted path only (`commit`).
Rows behind a sequence's length hold garbage that nothing reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops.dispatch import on_triton


class Mark(NamedTuple):
    """Lengths of a cache at some moment."""

    lengths: Tensor
    bound: int
    common: bool


class KVCache:
    """Keys and values of all layers, [L, B, H, S, D] each, and the number of rows in use of each sequence.

    Args:
        num_layers: layers L.
        batch: sequences B.
        length: rows S of a sequence; room for the final length plus the widest draft.
        num_kv_heads: key/value heads H.
        head_dim: width D of a head.
        dtype: of keys and values.
        device: of everything.

    Attributes:
        keys: [L, B, H, S, D].
        values: [L, B, H, S, D].
        lengths: rows in use, int64 [B]. Change it through the methods only.
        bound: no sequence uses more rows than this; known on the host, so slicing by it costs no device sync.
    """

    def __init__(
        self,
        num_layers: int,
        batch: int,
        length: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (num_layers, batch, num_kv_heads, length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.bound = 0
        self._common = True  # all sequences use exactly `bound` rows
        self._width = 0  # rows of the last write
        self._batch_index = torch.arange(batch, device=device)[:, None]

    @property
    def capacity(self) -> int:
        """Returns the rows S allocated for each sequence."""
        return self.keys.shape[3]

    @property
    def common_length(self) -> int | None:
        """Returns the one length of all sequences where the host knows it, else None."""
        return self.bound if self._common else None

    def narrow(self, batch: int) -> KVCache:
        """Returns the first ``batch`` sequences in shared memory; later changes of either's lengths are its own."""
        part = object.__new__(KVCache)
        part.keys, part.values = self.keys[:, :batch], self.values[:, :batch]
        part.lengths, part._batch_index = self.lengths[:batch].clone(), self._batch_index[:batch]
        part.bound, part._common, part._width = self.bound, self._common, self._width
        return part

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores T new rows of each sequence at rows ``lengths[b] .. lengths[b] + T - 1`` of one layer.

        Args:
            layer: which layer.
            k: keys [B, H, T, D], of any floating dtype: they are kept in the cache's.
            v: values [B, H, T, D], likewise.

        Returns:
            Views of the layer's keys and values, [B, H, bound + T, D]: old and new rows.

        Raises:
            VistokError: if the rows do not fit.
        """
        self._width = new = k.shape[2]
        end = self.bound + new
        keys, values = self.keys[layer], self.values[layer]
        if self._common:
            self._check_room(end)
            keys[:, :, self.bound : end] = k
            values[:, :, self.bound : end] = v
        else:
            if keys.device.type == "cpu":
                self._check_room(end)
            end = min(end, self.capacity)
            rows = self.lengths[:, None] + torch.arange(new, device=keys.device)
            keys[self._batch_index, :, rows] = k.transpose(1, 2).to(keys.dtype)
            values[self._batch_index, :, rows] = v.transpose(1, 2).to(values.dtype)
        return keys[:, :, :end], values[:, :, :end]

    def advance(self, rows: int | Tensor) -> None:
        """Keeps the last written rows: all sequences the same number, or [B] numbers of their own."""
        if isinstance(rows, int):
            self.lengths += rows
            self.bound += rows
        else:
            self.lengths += rows
            self._ragged(self.bound + self._width)

    def commit(self, path: Tensor, count: Tensor) -> None:
        """Keeps the accepted path of the last written draft, in all layers at once, and drops its other rows.

        Row ``lengths[b] + i`` becomes row ``lengths[b] + path[b, i]`` for ``i < count[b]``; then the
        sequence is ``count[b]`` rows longer. Keys keep their rotation: a node's depth, not its row, fixed
        its position.

        Args:
            path: accepted nodes in order, increasing, padded with -1, int64 [B, M].
            count: accepted nodes, int64 [B], 0 .. M.
        """
        if on_triton(self.keys):
            from vistok.ops.kernels.commit import commit_rows as move

            move(self.keys, self.values, self.lengths, path, count)
        elif (
            self.keys.device.type == "cpu"
            and self._common
            and bool((path == path[0]).all() & (count == count[0]).all())
        ):
            self._commit_same(path[0, : int(count[0])])
        else:
            commit_rows(self.keys, self.values, self.lengths, path, count)
        self.advance(count)

    def _commit_same(self, path: Tensor) -> None:
        """The move of :meth:`commit` where all sequences keep the same nodes [n], as the halves of guidance do."""
        end = self.bound + len(path)
        for cached in (self.keys, self.values):
            cached[:, :, :, self.bound : end] = cached.index_select(3, self.bound + path)

    def crop(self, lengths: int | Tensor) -> None:
        """Sets a common length, or [B] lengths of their own; rows that were never written must not come into use."""
        if isinstance(lengths, int):
            self.lengths.fill_(lengths)
            self.bound, self._common = lengths, True
        else:
            self.lengths.copy_(lengths)
            self._ragged(self.bound)

    def reserve(self, length: int) -> None:
        """Makes room for sequences of ``length`` rows, at least twice those of now, so appending is cheap."""
        if length <= self.capacity:
            return
        more = max(length, 2 * self.capacity) - self.capacity
        self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))

    def mark(self) -> Mark:
        """Returns the lengths as they are now, for :meth:`restore`."""
        return Mark(self.lengths.clone(), self.bound, self._common)

    def restore(self, mark: Mark) -> None:
        """Goes back to marked lengths; rows that were written since are dropped, or written again by another layer."""
        self.lengths.copy_(mark.lengths)
        self.bound, self._common = mark.bound, mark.common

    def replace(self, layer: int, k: Tensor, v: Tensor, which: slice = slice(None), first: int = 0) -> None:
        """Puts other rows in the place of some of a layer's; lengths are for :meth:`crop`.

        Args:
            layer: which layer.
            k: keys [B, H, M, D] of the sequences ``which``.
            v: values [B, H, M, D].
            which: sequences.
            first: row that the first goes to.
        """
        last = first + k.shape[2]
        self.reserve(last)
        self.keys[layer, which, :, first:last] = k
        self.values[layer, which, :, first:last] = v

    def move(self, sequence: int, rows: Tensor, to: Tensor, turn: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        """Puts rows of a sequence elsewhere, in all layers; lengths are for :meth:`crop`.

        Args:
            sequence: which.
            rows: those that move, int64 [n].
            to: where to, int64 [n], below the capacity; other rows that lie there are lost.
            turn: ``turn(keys [L, H, S, D], rows, to)`` gives their keys [L, H, n, D] as they are there.
        """
        keys = turn(self.keys[:, sequence], rows, to)
        values = self.values[:, sequence].index_select(2, rows)
        self.keys[:, sequence].index_copy_(2, to, keys)
        self.values[:, sequence].index_copy_(2, to, values)

    def reorder(self, sequences: Tensor) -> None:
        """Makes sequence b a copy of sequence ``sequences[b]``, int64 [B]: beams."""
        self.keys[..., : self.bound, :] = self.keys[..., : self.bound, :].index_select(1, sequences)
        self.values[..., : self.bound, :] = self.values[..., : self.bound, :].index_select(1, sequences)
        self.lengths.copy_(self.lengths[sequences])

    def _ragged(self, bound: int) -> None:
        """Lengths have changed on the device: on a CPU look at them, elsewhere settle for a bound."""
        on_cpu = self.lengths.device.type == "cpu"
        self.bound = int(self.lengths.max()) if on_cpu else min(bound, self.capacity)
        self._common = on_cpu and bool((self.lengths == self.bound).all())

    def _check_room(self, end: int) -> None:
        if end > self.capacity:
            raise VistokError(
                f"the KV cache has {self.capacity} rows but {end} are needed: allocate it with length={end} or more."
            )


def commit_rows(keys: Tensor, values: Tensor, lengths: Tensor, path: Tensor, count: Tensor) -> None:
    """Moves rows as :meth:`KVCache.commit` does, in place on keys and values [L, B, H, S, D]: the torch reference."""
    steps = torch.arange(path.shape[1], device=path.device)
    used = steps < count[:, None]
    # Padding repeats the first copy of its sequence, so equal targets get equal rows.
    first = torch.where(count[:, None] > 0, path[:, :1], 0)
    last = keys.shape[3] - 1
    source = (lengths[:, None] + torch.where(used, path, first)).clamp(max=last)
    target = (lengths[:, None] + torch.where(used, steps, 0)).clamp(max=last)
    batch = torch.arange(len(lengths), device=keys.device)[:, None]
    for cached in (keys, values):
        cached[:, batch, :, target] = cached[:, batch, :, source]
