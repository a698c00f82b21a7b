"""Features in blocks of rows, held or on disk, for metrics whose memory must not grow with the number of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from vistok.eval.sets.statistics import check_finite

if TYPE_CHECKING:
    from vistok.eval.sets.features import FeatureShards

BLOCK = 1024  # rows


class Blocks(Protocol):
    """Features [n, d]; iterating gives them block by block, as often as one likes."""

    def __len__(self) -> int:
        """Rows n."""

    def __iter__(self) -> Iterator[Tensor]:
        """Yields the blocks [m, d], in order."""


@dataclass(frozen=True)
class HeldBlocks:
    """Blocks of features [n, d] that are in memory."""

    features: Tensor
    rows: int = BLOCK

    def __len__(self) -> int:
        return len(self.features)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.features.split(self.rows)


@dataclass(frozen=True)
class StoredBlocks:
    """Blocks of one output of extracted features, one shard at a time in memory."""

    shards: FeatureShards
    output: str = "features"

    def __len__(self) -> int:
        return self.shards.count

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.shards.shards(self.output)


def blocks_of(features: Tensor | Blocks, rows: int = BLOCK) -> Blocks:
    """Returns features [n, d] in blocks of so many rows; what comes in blocks stays in its own.

    Raises:
        VistokError: a feature that is held is not finite; those on disk were checked when they were written.
    """
    if not isinstance(features, Tensor):
        return features
    check_finite(features)
    return HeldBlocks(features, rows)


def gather_rows(blocks: Blocks, index: Tensor) -> Tensor:
    """Returns rows of features by number: int64 [...] to [..., d]."""
    flat, start, out = index.flatten(), 0, None
    for block in blocks:
        if out is None:
            out = block.new_empty(len(flat), block.shape[1])
        inside = (flat >= start) & (flat < start + len(block))
        out[inside] = block[flat[inside] - start]
        start += len(block)
    return out.view(*index.shape, -1)


def pairs(rows: Blocks, columns: Blocks) -> Iterator[tuple[int, Tensor, int, Tensor]]:
    """Yields every block of rows beside every block of columns, each with the number of its first row."""
    above = 0
    for block in rows:
        before = 0
        for other in columns:
            yield above, block, before, other
            before += len(other)
        above += len(block)
