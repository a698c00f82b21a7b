"""Trees of the size that pays on this machine: expected tokens of a step over the seconds that it costs.

The forwards of target and draft network are measured once by their rows; what a step takes beside them is learnt from
the steps themselves, and where the last ones were slower than plain decoding, no promise counts. A drafter that sees
how good its candidates are without showing them (Token Recycling) chooses anew every few steps. One that must draft to
learn (prompt tokens, draft models, EAGLE heads) rests where nothing pays, until what its trials lost is a small share
of the time.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vistok.samplers.clock import seconds
from vistok.samplers.policies.trees import ranked_paths

if TYPE_CHECKING:
    from vistok.samplers.run import Run, Verdict

SIZES = (2, 4, 8, 16, 24, 32, 48, 63)  # drafts that are considered, beside none
DEPTH = 8
FORGET = 0.97  # weight of the past when a token is decided
PRIOR = 4.0  # tokens that the first guess is worth
MARGIN = 1.05  # a tree must promise so much more than none after a rest
BETTER = 1.02  # and so much more than the one of now
RECENT = 24  # steps of a form whose times are looked back on
KEEP = 0.95  # weight of the past when a step is over
WARM = 2  # first steps of a form, which build what later ones find, and do not count
AGAIN = 4  # steps of a trial, and those after which a tree is chosen anew
REST, LONGEST = 16, 1024  # steps of a rest, at least and at most
FAILED = 0.02  # share of the time that the last steps with drafts may have lost
LOSS = 0.02  # share of the time that trials that do not pay may take
BARE = (0, 0)  # form of a step without drafts


class Option(NamedTuple):
    """A tree that could be taken.

    Attributes:
        tree: what the drafter makes it of.
        tokens: that a step is expected to decide with it.
        seconds: of the step's forwards.
        form: whether the tree branches, and calls of a draft network; steps of a form cost the same beside forwards.
    """

    tree: Any
    tokens: float
    seconds: float
    form: tuple[int, int] = (1, 0)


class Sizer:
    """Which tree the coming steps take.

    Its drafter calls ``begin`` before a run, ``next`` before each step and ``learn`` behind it.

    Args:
        watches: it is known how good candidates are even while none is shown, so that no trials are needed.
    """

    def __init__(self, watches: bool = False):
        self.watches = watches
        self.chosen: Option | None = None
        self._left = 0 if watches else 2 * AGAIN  # at first it sees what steps without drafts take
        self._rested = not watches
        self._beside: dict[tuple[int, int], deque[float]] = {}  # by form, seconds beside the forwards
        self._steps: Counter[tuple[int, int]] = Counter()  # by form
        self._alone = [1.0, 1.0]  # tokens and steps without drafts
        # Steps with drafts since the last rest: form, seconds of the forwards, tokens.
        self._spent: deque[tuple[tuple[int, int], float, float]] = deque(maxlen=RECENT)
        self._price = 0.0  # plain steps that the last trial lost
        self._device: torch.device | str = "cpu"
        self._began: float | None = None
        self._decided: float | None = None
        self._extra = 0.0

    def begin(self, run: Run) -> None:
        """A run begins: what passed since the last step was none, and another text may be worth a trial."""
        self._device = run.decided.device
        self.pause()
        if self._price <= LOSS * run.length:
            self._left = min(self._left, REST)

    def pause(self) -> None:
        """The step that begins is another's."""
        self._began = None

    def learn(self, run: Run, verdict: Verdict, more: float = 0.0) -> None:
        """Take over how many tokens the step decided; ``run.decided`` is still that of before.

        Args:
            more: seconds that its forwards took beside those of the option, for what others drafted.
        """
        self._extra = more
        going = int((run.decided < run.length).sum())
        self._decided = int(verdict.count.sum()) / going if going else None

    @property
    def due(self) -> bool:
        """Whether the next tree is chosen anew."""
        return self._left == 0

    def next(self, options: Callable[[], Sequence[Option]], plain: float) -> Option | None:
        """The option for a step, None for no drafts.

        Args:
            options: those that there are.
            plain: seconds of the target's forward in a step without drafts.
        """
        self._note(plain)
        if self.due:
            self._left, found, lost = AGAIN, options(), self._lost(plain)
            best, failed = max(found, key=self._rate), lost > FAILED * RECENT and len(self._spent) == RECENT
            gain, drafts = self._rate(best) * self._pace(plain), self.chosen is not None
            if not failed and (gain > (BETTER if drafts else MARGIN) or (drafts and lost < 0)):
                now = next((option for option in found if self.chosen and option.tree == self.chosen.tree), best)
                self.chosen = best if self._rate(best) > BETTER * self._rate(now) else now
            elif self._rested and not failed:
                self.chosen, self._rested = best, False
            else:
                self._rest(lost, failed)
        self._left -= 1
        return self.chosen

    def _rest(self, lost: float, failed: bool) -> None:
        """Draft nothing for a while: so long that what was lost, in plain steps, is a small share of it."""
        self._left = 2 * AGAIN if self.watches else REST
        if failed or not self.watches:
            self._left = min(max(self._left, round(lost / LOSS)), LONGEST)
        self._price = max(0.0, lost * AGAIN / max(AGAIN, len(self._spent)))
        self.chosen, self._rested = None, not self.watches
        self._spent.clear()

    def _lost(self, plain: float) -> float:
        """Plain steps' time that the steps with drafts since the last rest lost, at most the last of them.

        Typical times count: the first call of anything takes ten times as long.
        """
        pace = self._pace(plain)
        return sum(took + self.beside(form) - tokens * pace for form, took, tokens in self._spent) / pace

    def _note(self, plain: float) -> None:
        """Learn from the step that is over."""
        now, began, tokens, chosen = seconds(self._device), self._began, self._decided, self.chosen
        self._began, self._decided = now, None
        if began is None or tokens is None:
            return
        form, forwards = (BARE, plain) if chosen is None else (chosen.form, chosen.seconds)
        self._steps[form] += 1
        if self._steps[form] <= WARM:
            return
        forwards += self._extra
        self._beside.setdefault(form, deque(maxlen=RECENT)).append(max(0.0, now - began - forwards))
        if chosen is None:
            self._alone = [KEEP * self._alone[0] + tokens, KEEP * self._alone[1] + 1]
        else:
            self._spent.append((form, forwards, tokens))

    def beside(self, form: tuple[int, int]) -> float:
        """Seconds that a step takes beside its forwards: as of the most similar form that there was."""

        def far(known: tuple[int, int]) -> tuple[bool, bool, int]:
            return known[0] != form[0], (known == BARE) != (form == BARE), abs(known[1] - form[1])

        near = min(self._beside, key=far, default=None)
        return statistics.median(self._beside[near]) if near is not None else 0.0

    def _rate(self, option: Option) -> float:
        """Tokens a second that may be expected."""
        return option.tokens / (option.seconds + self.beside(option.form))

    def _pace(self, plain: float) -> float:
        """Seconds that a token takes without drafts."""
        tokens, steps = self._alone
        return (plain + self.beside(BARE)) * steps / tokens


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


class Follows:
    """How often a chain's next token was right where those before were.

    Args:
        depth: longest chain.
        first: guess for its first token; each further one begins as the one before.
    """

    def __init__(self, depth: int, first: float):
        self._first, self._asked, self._passed = first, [0.0] * depth, [0.0] * depth

    def learn(self, right: int, shown: int) -> None:
        """Take over that the first ``right`` of ``shown`` tokens were right."""
        for place in range(min(right + 1, shown)):
            self._asked[place] = FORGET * self._asked[place] + 1
            self._passed[place] = FORGET * self._passed[place] + (place < right)

    def tokens(self) -> list[float]:
        """How many tokens of a chain of 0, 1, ... are expected to be right."""
        found, follows, chance = [0.0], self._first, 1.0
        for passed, asked in zip(self._passed, self._asked, strict=True):
            follows = (passed + PRIOR * follows) / (asked + PRIOR)
            chance *= follows
            found.append(found[-1] + chance)
        return found


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
