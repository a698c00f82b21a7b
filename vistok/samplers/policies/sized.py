"""Trees of the size that pays on this machine: expected tokens of a step over the seconds that its rows cost.

The target's cost by rows is measured once; how often candidates are right is learnt from the text as it is decided,
drafted or not, so the empty tree needs no trial to be left again.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence

from vistok.samplers.policies.trees import Path, best_tree

SIZES = (2, 4, 8, 16, 24, 32, 48, 63)  # drafts that are considered, beside none
DEPTH = 8
FORGET = 0.97  # weight of the past when a token is decided
PRIOR = 4.0  # tokens that the first guess is worth
MARGIN = 1.03  # a tree must promise so much more than none, for what drafting itself costs


def expected_tokens(paths: Sequence[Path], accuracy: Sequence[Sequence[float]]) -> float:
    """Tokens of a step: the root's, and the chance of every node that it and all above it are right."""
    total = 1.0
    for path in paths:
        chance = 1.0
        for depth, rank in enumerate(path):
            chance *= accuracy[depth][rank]
        total += chance
    return total


def interpolated(cost: Mapping[int, float], rows: int) -> float:
    """Seconds of a step of so many rows, between those that were measured."""
    widths = sorted(cost)
    above = bisect.bisect_left(widths, rows)
    if above == 0 or above == len(widths):
        return cost[widths[min(above, len(widths) - 1)]]
    low, high = widths[above - 1], widths[above]
    return cost[low] + (cost[high] - cost[low]) * (rows - low) / (high - low)


def best_size(accuracy: Sequence[Sequence[float]], cost: Mapping[int, float]) -> tuple[Path, ...]:
    """The tree of most expected tokens a second; empty where none beats plain decoding.

    Args:
        accuracy: entry [d][r], see ``best_tree``.
        cost: seconds by rows, the root's included.
    """
    best, found = MARGIN / interpolated(cost, 1), ()
    for size in SIZES:
        paths = best_tree(accuracy, size)
        rate = expected_tokens(paths, accuracy) / interpolated(cost, 1 + len(paths))
        if rate > best:
            best, found = rate, paths
    return found


class Accuracy:
    """How often candidate r behind a token was the next one, behind a token that was itself foreseen or not.

    Args:
        ranks: candidates of a token.
    """

    def __init__(self, ranks: int):
        self.ranks = ranks
        self._hits = [[PRIOR * 0.3 / 2**rank for rank in range(ranks)] for _ in range(2)]
        self._seen = [PRIOR, PRIOR]

    def learn(self, rank: int | None, foreseen: bool) -> None:
        """Take over that the next token was candidate ``rank``, or none of them."""
        which = int(foreseen)
        hits = self._hits[which]
        for index in range(self.ranks):
            hits[index] = FORGET * hits[index] + (index == rank)
        self._seen[which] = FORGET * self._seen[which] + 1

    def table(self) -> list[list[float]]:
        """Entry [d][r], as ``best_tree`` takes it: falling in r."""
        first, later = (
            [min(hit / seen, 0.98) for hit in hits] for hits, seen in zip(self._hits, self._seen, strict=True)
        )
        rows = [first] + [later] * (DEPTH - 1)
        return [[min(row[: rank + 1]) for rank in range(self.ranks)] for row in rows]
