"""Generators of scenes side by side, whatever they draw: the same single objects asked for, forwards, operations, time
and scores.

A generator of classes is asked by the class's number, one of captions by a photo of the object. Figures of a row:

- ``parameters``: of the generator, text encoders and tokenizers of pictures not counted;
- ``forwards``: passes of its network that a picture waited for;
- ``operations``: of a picture in its first batch, see ``vistok.eval.decoding.operations``;
- ``seconds`` of a batch, ``speed_up`` and ``cpu_speed_up`` over the first row;
- ``detector``, ``change`` and ``distance``: see ``vistok.eval.decoding.objects``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vistok.data.scenes import COLOURS, SHAPES
from vistok.eval.decoding.comparison import Column, Entry, Figure, Row, Trial, run_in_turn, time_figures
from vistok.eval.decoding.images import Watched, stats_of, timed
from vistok.eval.decoding.objects import object_scores
from vistok.eval.decoding.operations import count_operations
from vistok.eval.geneval.metadata import colors

if TYPE_CHECKING:
    from vistok.pipelines import Output, Pipeline, Sample
    from vistok.samplers.params import SamplingParams

COLUMNS = (
    Column("parameters", "parameters", ","),
    Column("forwards", "forwards", ".1f"),
    Column("GFLOP", "gflop"),
    Column("seconds", "seconds"),
    Column("speed-up", "speed_up"),
    Column("CPU speed-up", "cpu_speed_up"),
    Column("detector", "detector"),
    Column("detector - first", "change"),
    Column("FD", "distance"),
)
STANDARD = (
    "llamagen",
    "llamagen@sjd:window=16",
    "mar",
    "mar@cspd:drafter=mar-mini-draft",
    "xar",
    "maskgit",
    "enat",
)
ALIKE = 0.3  # share by which parameters may differ where sizes count as equal


@dataclass(frozen=True)
class Contestant:
    """A generator with one of its samplers.

    Attributes:
        pipe: the generator.
        sampler: one that fits it, prepared.
        params: guidance and temperature.
    """

    pipe: Pipeline
    sampler: Any
    params: SamplingParams

    @property
    def parameters(self) -> int:
        """Weights of the generator."""
        return sum(p.numel() for p in self.pipe.model.parameters())


def asked(pipe: Pipeline, samples: Sequence[Sample]) -> list[Sample]:
    """Returns samples of kinds of objects as a generator is asked for them: by class or by caption."""
    if pipe.conditional_on == "class":
        return list(samples)
    return [replace(sample, condition=caption(sample.condition)) for sample in samples]


def caption(kind: int) -> str:
    """Returns what a generator of captions is told about a kind of object."""
    shape, colour = divmod(kind, len(COLOURS))
    return colors(SHAPES[shape], COLOURS[colour])["prompt"]


def run(
    entries: Sequence[Entry],
    samples: Sequence[Sample],
    seed: int = 0,
    batch_size: int = 1,
    advance: Callable[[], None] | None = None,
) -> tuple[list[Trial], list[float]]:
    """Draws the same kinds of objects with every contestant, batch by batch.

    Args:
        entries: whose method is a Contestant.
        samples: their conditions are kinds, see ``Scenes.kind``.
        seed, batch_size: as in ``Pipeline.iterate``.
        advance: called whenever a contestant has drawn a batch.

    Returns:
        A trial of each entry, and the operations of a picture of its first batch, which is drawn beforehand.
    """
    batches = [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]

    def draw(each: Contestant, batch: Sequence[Sample], sampler: Watched) -> Output:
        ((_, output),) = each.pipe.iterate(asked(each.pipe, batch), sampler, each.params, seed, batch_size)
        return output

    def operations(each: Contestant) -> float:
        drawn: list[Any] = []
        counted: list[int] = []

        def count(call: Callable[[], Any]) -> Any:
            counted.append(count_operations(lambda: drawn.append(call())))
            return drawn[0]

        draw(each, batches[0], Watched(each.sampler, count))
        return counted[0] / len(batches[0])

    def turn(trial: Trial, batch: Sequence[Sample]) -> Output:
        return draw(trial.entry.method, batch, timed(trial, trial.entry.method.sampler))

    counts = [operations(entry.method) for entry in entries]
    trials = [Trial(entry) for entry in entries]
    run_in_turn(trials, batches, turn, advance)
    return trials, counts


def summarise(trials: Sequence[Trial], operations: Sequence[float], samples: Sequence[Sample]) -> list[Row]:
    """Returns the figures of all trials against the first's."""
    rows = []
    for trial, count, scores in zip(trials, operations, object_scores(trials, samples), strict=True):
        figures: dict[str, Figure] = {
            "parameters": trial.entry.method.parameters,
            "forwards": stats_of(trial).passes,
            "gflop": count / 1e9,
        }
        figures |= time_figures(trials[0], trial) | scores
        rows.append(Row(trial.entry.name, trial.entry.lossless, figures))
    return rows


def of_other_size(rows: Sequence[Row]) -> list[str]:
    """Returns the names of rows whose parameters differ by more than ``ALIKE`` from the first row's."""
    first = rows[0].figures["parameters"]
    return [row.name for row in rows if abs(row.figures["parameters"] / first - 1) > ALIKE]
