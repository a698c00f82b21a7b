"""Trees of the size that pays on this machine: expected tokens of a step over the seconds that it costs.

The target's cost by rows is measured once; what a tree is worth is learnt from the text as it is decided. A drafter
that sees how good its candidates are without showing them (Token Recycling) chooses anew every few steps. One that must
draft to learn (prompt tokens, draft models, EAGLE heads) rests where nothing pays, and longer after each trial that did
not pay, so that plain decoding is hardly slowed down.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from vistok.samplers.policies.trees import ranked_paths

SIZES = (2, 4, 8, 16, 24, 32, 48, 63)  # drafts that are considered, beside none
DEPTH = 8
FORGET = 0.97  # weight of the past when a token is decided
PRIOR = 4.0  # tokens that the first guess is worth
MARGIN = 1.03  # a tree must promise so much more than none, for what cannot be measured
AGAIN = 4  # steps of a trial, and those after which a tree is chosen anew
REST, LONGEST = 16, 256  # steps of the first rest, and of any


class Option(NamedTuple):
    """A tree that could be taken.

    Attributes:
        tree: what the drafter makes it of.
        tokens: that a step is expected to decide with it.
        seconds: that the step will take.
    """

    tree: Any
    tokens: float
    seconds: float


def best_option(options: Iterable[Option], plain: float) -> Option | None:
    """The option of most tokens a second; None where none beats a step of ``plain`` seconds without drafts."""
    best = max(options, key=lambda option: option.tokens / option.seconds, default=None)
    return best if best is not None and best.tokens / best.seconds > MARGIN / plain else None


class Sizer:
    """Which tree the coming steps take.

    Args:
        watches: it is known how good candidates are even while none is shown, so that no trials are needed.
    """

    def __init__(self, watches: bool = False):
        self.watches = watches
        self.chosen: Option | None = None
        self._left, self._rest, self._tried = 0, REST, False

    @property
    def due(self) -> bool:
        """Whether the next tree is chosen anew."""
        return self._left == 0

    def next(self, options: Callable[[], Sequence[Option]], plain: float) -> Option | None:
        """The option for a step, None for no drafts; the first option is the one for trials."""
        if self.due:
            self._left = AGAIN
            if self.watches or self._tried:
                self.chosen = best_option(options(), plain)
                if self.chosen is not None:
                    self._rest = REST
                elif self.watches:
                    self._left = 2 * AGAIN
                else:
                    self._left, self._rest, self._tried = self._rest, min(2 * self._rest, LONGEST), False
            else:
                self.chosen, self._tried = options()[0], True
        self._left -= 1
        return self.chosen


def interpolated(cost: Mapping[int, float], rows: float) -> float:
    """Seconds of a step of so many rows, between those that were measured."""
    widths = sorted(cost)
    above = bisect.bisect_left(widths, rows)
    if above == 0 or above == len(widths):
        return cost[widths[min(above, len(widths) - 1)]]
    low, high = widths[above - 1], widths[above]
    return cost[low] + (cost[high] - cost[low]) * (rows - low) / (high - low)


def size_options(accuracy: Sequence[Sequence[float]], cost: Mapping[int, float]) -> list[Option]:
    """The best tree of each size.

    Args:
        accuracy: entry [d][r], see ``best_tree``.
        cost: seconds by rows, the root's included.
    """
    ranked = ranked_paths(accuracy, SIZES[-1])
    tokens = list(itertools.accumulate((value for _, value in ranked), initial=1.0))
    return [
        Option(tuple(path for path, _ in ranked[:size]), tokens[size], interpolated(cost, 1 + size))
        for size in SIZES
        if size <= len(ranked)
    ]


def best_size(accuracy: Sequence[Sequence[float]], cost: Mapping[int, float]) -> tuple[tuple[int, ...], ...]:
    """The paths of most expected tokens a second; empty where none beats plain decoding."""
    best = best_option(size_options(accuracy, cost), interpolated(cost, 1))
    return () if best is None else best.tree


class Accuracy:
    """How often candidate r of a token was right, on several levels.

    Args:
        ranks: candidates of a token.
        levels: of candidates: two for those behind a token that was itself not foreseen, or was; or one a distance.
    """

    def __init__(self, ranks: int, levels: int = 2):
        self.ranks = ranks
        self._hits = [[PRIOR * 0.3 / 2**rank for rank in range(ranks)] for _ in range(levels)]
        self._seen = [PRIOR] * levels

    def learn(self, rank: int | None, level: int) -> None:
        """Take over that the next token was candidate ``rank``, or none of them."""
        hits = self._hits[level]
        for index in range(self.ranks):
            hits[index] = FORGET * hits[index] + (index == rank)
        self._seen[level] = FORGET * self._seen[level] + 1

    def table(self, depth: int = DEPTH) -> list[list[float]]:
        """Entry [d][r], as ``best_tree`` takes it: falling in r; the last level stands for all that are deeper."""
        rows = [[min(hit / seen, 0.98) for hit in hits] for hits, seen in zip(self._hits, self._seen, strict=True)]
        falling = [[min(row[: rank + 1]) for rank in range(self.ranks)] for row in rows]
        return [falling[min(d, len(rows) - 1)] for d in range(depth)]
