"""The common part of comparisons: entries that take turns, their figures, and how these are written.

Every unit of work (a batch of images, a prompt) is done by all entries in turn before the next one begins, so that
whatever else the machine does slows all of them alike. Ratios are of sums over the same units, with paired bootstrap
intervals (:mod:`vistok.eval.decoding.estimate`). The first entry is the baseline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, TypeVar

from vistok.errors import unknown_name
from vistok.eval.decoding.estimate import Estimate, ratio_estimate

Unit = TypeVar("Unit")
Figure = Estimate | float | int | None


@dataclass(frozen=True)
class Entry:
    """One way to decode in a comparison.

    Attributes:
        name: of the method and its options.
        method: what the comparison runs: a sampler, or options of ``generate``, or a function that makes these.
        lossless: whether its tokens follow the model's distribution exactly.
    """

    name: str
    method: Any
    lossless: bool = True


@dataclass
class Trial:
    """What one entry did: its results and times, unit by unit.

    Attributes:
        entry: who.
        results: of each unit, in order.
        seconds, cpu_seconds: wall and processor time of each unit.
    """

    entry: Entry
    results: list[Any] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Measures the time of the block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu_seconds.append(time.process_time() - cpu)
        self.seconds.append(time.perf_counter() - wall)


def choose_entries(entries: Sequence[Entry], words: Sequence[str], kind: str) -> list[Entry]:
    """Returns the baseline and the entries whose name contains one of the words.

    Args:
        entries: the baseline first.
        words: parts of names.
        kind: what the entries are, for sentences.

    Raises:
        VistokError: a word that is in no name.
    """
    for word in words:
        if not word or not any(word in entry.name for entry in entries):
            raise unknown_name(kind, word, [entry.name for entry in entries])
    return [e for e in entries if e is entries[0] or any(word in e.name for word in words)]


def run_in_turn(
    trials: Sequence[Trial],
    units: Sequence[Unit],
    decode: Callable[[Trial, Unit], Any],
    advance: Callable[[], None] | None = None,
) -> None:
    """Lets every trial do each unit before the next one begins.

    Args:
        trials: to be filled.
        units: of work.
        decode: does a unit with the trial's method, inside ``trial.timed()``, and returns the result.
        advance: called after each.
    """
    for unit in units:
        for trial in trials:
            trial.results.append(decode(trial, unit))
            if advance:
                advance()


@dataclass(frozen=True)
class Row:
    """The figures of one entry.

    Attributes:
        name, lossless: of the entry.
        figures: by name; the module of the comparison says which.
        kind: of the units that they cover, where a comparison has several kinds.
        scores: of what was decoded, by name, where it is scored; each is a column of its own.
    """

    name: str
    lossless: bool
    figures: Mapping[str, Figure]
    kind: str | None = None
    scores: Mapping[str, Estimate | float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        found: dict[str, Any] = {"name": self.name}
        if self.kind is not None:
            found["kind"] = self.kind
        found |= {"lossless": self.lossless, **_plain(self.figures)}
        return found | ({"scores": _plain(self.scores)} if self.scores else {})


def _plain(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: asdict(figure) if isinstance(figure, Estimate) else figure for name, figure in figures.items()}


def time_figures(baseline: Trial, trial: Trial) -> dict[str, Figure]:
    """Returns ``seconds`` of a unit, and ``speed_up`` and ``cpu_speed_up``, the baseline's time over the trial's."""
    return {
        "seconds": sum(trial.seconds) / len(trial.seconds),
        "speed_up": ratio_estimate(baseline.seconds, trial.seconds),
        "cpu_speed_up": ratio_estimate(baseline.cpu_seconds, trial.cpu_seconds),
    }


class Column(NamedTuple):
    """How a figure stands in a table.

    Attributes:
        heading: of the column.
        figure: its name.
        form: format of a plain number; estimates are written with their intervals.
    """

    heading: str
    figure: str
    form: str = ".2f"


def table(rows: Sequence[Row], columns: Sequence[Column], heading: str = "") -> str:
    """Returns rows as a Markdown table whose columns line up, so that it reads well in a terminal too.

    Args:
        rows: of one kind.
        columns: behind the entry's name and whether it is lossless; scores follow.
        heading: of the names.
    """
    lines = [[heading, "lossless", *(column.heading for column in columns), *rows[0].scores]]
    for row in rows:
        cells = [_cell(row.figures[column.figure], column.form) for column in columns]
        cells += [_cell(score, ".2f") for score in row.scores.values()]
        lines.append([row.name, "yes" if row.lossless else "no", *cells])
    widths = [max(3, *map(len, cells)) for cells in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _cell(figure: Figure, form: str) -> str:
    if figure is None:
        return ""
    return str(figure) if isinstance(figure, Estimate) else format(figure, form)
