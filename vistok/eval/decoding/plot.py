"""The picture of a comparison of samplers; needs matplotlib (extra ``test``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vistok.eval.decoding.comparison import Row
from vistok.eval.decoding.estimate import Estimate
from vistok.eval.plots import new_figure, save_figure

LOSSLESS, LOSSY, SECOND = "#1f6f8b", "#c8553d", "#9aa5b1"


def plot(rows: Sequence[Row], cost: Mapping[int, float], path: str | Path) -> None:
    """Draws accepted lengths and speed-ups, scores that have intervals, and what a forward pass costs by its width.

    Args:
        rows: plain decoding first.
        cost: seconds of a pass by the tokens of a sequence, see ``forward_cost``.
        path: the picture file.

    Raises:
        VistokError: matplotlib is not installed.
    """
    scored = [name for name, score in rows[0].scores.items() if isinstance(score, Estimate)][:1]
    figure = new_figure(11 + 3 * len(scored), 0.42 * len(rows) + 2)
    panels = figure.subplots(1, 2 + len(scored), width_ratios=[3, *(2 for _ in scored), 2])
    _bars(panels[0], rows)
    for name, axes in zip(scored, panels[1:-1], strict=True):
        _dots(axes, rows, name)
    _curve(panels[-1], cost)
    save_figure(figure, path, dpi=120)


def _bars(axes, rows: Sequence[Row]) -> None:
    """Accepted length above, speed-up below, with their intervals."""
    places = range(len(rows))
    colours = [LOSSLESS if row.lossless else LOSSY for row in rows]
    for shift, estimates, colour in (
        (-0.2, [row.figures["accepted_length"] for row in rows], colours),
        (0.2, [row.figures["speed_up"] for row in rows], SECOND),
    ):
        values = [estimate.value for estimate in estimates]
        axes.barh([place + shift for place in places], values, 0.4, color=colour, xerr=_errors(estimates))
    for label, colour in (("tokens a step, lossless", LOSSLESS), ("tokens a step, lossy", LOSSY), ("speed-up", SECOND)):
        axes.barh([0], [0], color=colour, label=label)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(list(places), [row.name for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("times plain decoding")
    axes.figure.legend(loc="outside lower left", ncols=3)


def _dots(axes, rows: Sequence[Row], name: str) -> None:
    """A score with its interval, beside plain decoding's."""
    estimates = [row.scores[name] for row in rows]
    for place, (row, estimate) in enumerate(zip(rows, estimates, strict=True)):
        colour = LOSSLESS if row.lossless else LOSSY
        axes.errorbar(estimate.value, place, xerr=_errors([estimate]), fmt="o", color=colour)
    axes.axvspan(estimates[0].low, estimates[0].high, color=SECOND, alpha=0.25)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks([])
    axes.set_xlabel(f"{name}; band: plain decoding")


def _curve(axes, cost: Mapping[int, float]) -> None:
    """Milliseconds of a pass by its width."""
    axes.plot(list(cost), [seconds * 1e3 for seconds in cost.values()], marker="o", color=LOSSLESS)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(cost), [str(width) for width in cost])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tokens of a sequence in a forward pass")
    axes.set_ylabel("milliseconds")
    axes.grid(alpha=0.3)


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Interval bounds as distances from the value, which matplotlib wants."""
    return [
        [max(0.0, estimate.value - estimate.low) for estimate in estimates],
        [max(0.0, estimate.high - estimate.value) for estimate in estimates],
    ]
