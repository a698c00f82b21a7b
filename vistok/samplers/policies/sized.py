"""Trees of the size that pays on this machine: expected tokens of a step over the seconds that it costs.

The target's cost by rows is measured once; what a tree is worth is learnt from the text as it is decided. A drafter
that sees how good its candidates are without showing them (Token Recycling) chooses anew every few steps. One that must
draft to learn (prompt tokens, draft models, EAGLE heads) rests where nothing pays: longer after each trial that did not
pay, and as long as it takes until what the trial lost is a small share of the time.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from vistok.samplers.policies.trees import ranked_paths

if TYPE_CHECKING:
    from vistok.samplers.loop import Run

SIZES = (2, 4, 8, 16, 24, 32, 48, 63)  # drafts that are considered, beside none
DEPTH = 8
FORGET = 0.97  # weight of the past when a token is decided
PRIOR = 4.0  # tokens that the first guess is worth
MARGIN = 1.05  # a tree must promise so much more than none, for what cannot be measured
BETTER = 1.02  # and so much more than the one of now
TIMED, RECENT = 64, 16  # steps that are timed with drafts and without, and that are looked back on
AGAIN = 4  # steps of a trial, and those after which a tree is chosen anew
REST, LONGEST = 16, 1024  # steps of the first rest, and of any
LOSS = 0.03  # share of plain decoding's time that trials that do not pay may take


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


def mean_decided(run: Run) -> float:
    """Tokens that each text of a run has, on average."""
    return float(run.decided.sum()) / len(run.decided)


def best_option(options: Iterable[Option], plain: float, more: float = 0.0) -> Option | None:
    """The option of most tokens a second, each taking ``more`` seconds than it says; None where none beats a step of
    ``plain`` seconds without drafts.
    """
    best = max(options, key=lambda option: option.tokens / (option.seconds + more), default=None)
    return best if best is not None and best.tokens / (best.seconds + more) > MARGIN / plain else None


class Sizer:
    """Which tree the coming steps take.

    What a step takes beside the forwards that are measured beforehand is learnt from the steps themselves, with drafts
    and without; and where the last steps with drafts were slower than plain decoding, no promise counts.

    Args:
        watches: it is known how good candidates are even while none is shown, so that no trials are needed.
    """

    def __init__(self, watches: bool = False):
        self.watches = watches
        self.chosen: Option | None = None
        self._left, self._rest = 0 if watches else 2 * AGAIN, REST  # at first it sees what steps without drafts take
        self._tried = self._wary = False
        self._taken: dict[bool, list[float]] = {False: [], True: []}  # beside what was expected, seconds
        # Tokens and seconds of the last steps without drafts and with.
        self._recent: dict[bool, deque[tuple[float, float]]] = {kind: deque(maxlen=RECENT) for kind in (False, True)}
        self._spent = (0.0, 0.0)  # tokens and seconds with drafts since the last rest
        self._began: tuple[float, float] | None = None

    def begin(self) -> None:
        """A run begins: what passed since the last step was none."""
        self._began = None

    def _more(self, drafts: bool) -> float:
        """Seconds that a step takes beside what is expected."""
        return statistics.median(self._taken[drafts]) if self._taken[drafts] else 0.0

    def _clock(self, plain: float, decided: float) -> None:
        """Note what the step that is over took, and decided."""
        now, drafts = time.perf_counter(), self.chosen is not None
        if self._began is not None:
            seconds, tokens = now - self._began[0], decided - self._began[1]
            if len(self._taken[drafts]) < TIMED:
                self._taken[drafts].append(max(0.0, seconds - (self.chosen.seconds if drafts else plain)))
            self._recent[drafts].append((tokens, seconds))
            if drafts:
                self._spent = self._spent[0] + tokens, self._spent[1] + seconds
        self._began = now, decided

    def _lost(self) -> bool:
        """Whether the last steps with drafts were slower than steps without; once they were, a trial is enough."""
        bare, drafted = self._recent[False], self._recent[True]
        if len(bare) < AGAIN or len(drafted) < (AGAIN if self._wary else RECENT):
            return False
        (tokens, seconds), (more, longer) = (map(sum, zip(*steps, strict=True)) for steps in (bare, drafted))
        lost = more * seconds < tokens * longer
        if lost:
            drafted.clear()
            self._wary = True
        elif len(drafted) == RECENT:
            self._wary = False
        return lost

    def _repaid(self) -> int:
        """Steps of a rest, behind which what was lost since the last one is no more than a share of the time."""
        tokens, seconds = map(sum, zip(*self._recent[False], strict=True)) if self._recent[False] else (0.0, 0.0)
        spent, self._spent = self._spent, (0.0, 0.0)
        if tokens <= 0 or seconds <= 0:
            return 0
        lost = spent[1] * tokens / seconds - spent[0]  # in tokens of plain decoding, of which each step has as many
        return round(lost * len(self._recent[False]) / tokens / LOSS)

    @property
    def due(self) -> bool:
        """Whether the next tree is chosen anew."""
        return self._left == 0

    def next(self, options: Callable[[], Sequence[Option]], plain: float, decided: float = 0.0) -> Option | None:
        """The option for a step, None for no drafts.

        Args:
            options: those that there are; the first is for trials.
            plain: seconds of the target in a step without drafts.
            decided: tokens that each text has, on average.
        """
        self._clock(plain, decided)
        if self.due:
            self._left = AGAIN
            if self.watches or self._tried:
                lost = self._lost()
                self.chosen = None if lost else self._best(options(), plain)
                if self.chosen is None and self.watches and not lost:
                    self._left = 2 * AGAIN
                elif self.chosen is None:
                    self._left = min(max(self._rest, self._repaid()), LONGEST)
                    self._rest, self._tried = min(2 * self._rest, LONGEST), False
                elif len(self._recent[True]) == RECENT:  # and they were worth it
                    self._rest = REST
            else:
                self.chosen, self._tried = options()[0], True
        self._left -= 1
        return self.chosen

    def _best(self, options: Sequence[Option], plain: float) -> Option | None:
        more = self._more(True)
        best = best_option(options, plain + self._more(False), more)
        if best is None or self.chosen is None:
            return best
        now = next((option for option in options if option.tree == self.chosen.tree), best)
        gain = best.tokens / (best.seconds + more) * (now.seconds + more) / now.tokens
        return best if gain > BETTER else now


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
