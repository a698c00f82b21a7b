"""Samplers side by side: the same prompts and seeds, target forwards, accepted lengths, seconds, and scores.

Every batch of pictures is drawn by all samplers in turn before the next one begins, so that whatever else the machine
does slows all of them alike. Ratios are of sums over the same pictures, with paired bootstrap intervals
(:mod:`vistok.eval.decoding.estimate`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from vistok.errors import unknown_name
from vistok.eval.decoding.estimate import Estimate, ratio_estimate
from vistok.samplers.drafters.eagle import Eagle
from vistok.samplers.drafters.jacobi import INITS, SpeculativeJacobi
from vistok.samplers.drafters.plain import Autoregressive
from vistok.samplers.drafters.recycling import Recycling
from vistok.samplers.interface import Sampler
from vistok.samplers.params import SamplingParams
from vistok.samplers.stats import Stats
from vistok.samplers.verifiers.lantern import Lantern

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.pipelines import Pipeline, Sample

WINDOWS = (8, 16, 32, 64)
ADDITIVE = (0.05, 0.1, 0.2, 0.4)  # LANTERN's published grid of delta
MULTIPLICATIVE = ((10, 5.0), (5, 10.0), (5, 20.0))  # LANTERN++'s published pairs of k and lambda


@dataclass(frozen=True)
class Contestant:
    """A sampler in a comparison.

    Attributes:
        name: of the sampler and its options.
        sampler: draws the pictures.
        lossless: whether its pictures follow the model's law.
    """

    name: str
    sampler: Sampler
    lossless: bool = True


def standard_samplers(drafter: str | None) -> list[Contestant]:
    """What a comparison runs; plain decoding comes first.

    Args:
        drafter: the model's EAGLE network, for exact speculation and LANTERN; they are left out without one.
    """
    found = [Contestant("ar", Autoregressive())]
    found += [Contestant(f"sjd published {init}", SpeculativeJacobi(16, init, "published")) for init in INITS]
    found += [Contestant(f"sjd coupled {window}", SpeculativeJacobi(window)) for window in WINDOWS]
    found.append(Contestant("recycling", Recycling()))
    if drafter is None:
        return found
    static = {"drafter": drafter, "tree": "mc_sim_7b_63"}
    found += [Contestant("eagle dynamic", Eagle(drafter)), Contestant("eagle static", Eagle(**static))]
    for delta in ADDITIVE:
        lantern = Lantern(drafter, delta=delta)
        found.append(Contestant(f"lantern delta {delta:g}", lantern, lossless=False))
    for k, factor in MULTIPLICATIVE:
        lantern = Lantern(k=k, delta=factor, mode="multiplicative", **static)
        found.append(Contestant(f"lantern++ k {k} lambda {factor:g}", lantern, lossless=False))
    return found


def choose(contestants: Sequence[Contestant], words: Sequence[str]) -> list[Contestant]:
    """Plain decoding and the contestants whose name contains one of the words.

    Raises:
        VistokError: a word that is in no name.
    """
    for word in words:
        if not any(word in contestant.name for contestant in contestants):
            raise unknown_name("sampler", word, [contestant.name for contestant in contestants])
    base, *others = contestants
    return [base, *(one for one in others if any(word in one.name for word in words))]


@dataclass
class Trial:
    """What one contestant drew.

    Attributes:
        contestant: who.
        images: in the order of the samples.
        stats: of each batch.
        seconds, cpu_seconds: wall and processor time of drawing the tokens of each batch.
    """

    contestant: Contestant
    images: list[Image] = field(default_factory=list)
    stats: list[Stats] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def interface(self) -> str:
        """That of the sampler."""
        return self.contestant.sampler.interface

    @property
    def honours(self) -> frozenset[str]:
        """Those of the sampler."""
        return self.contestant.sampler.honours

    def prepare(self, model, tokenizer=None) -> Trial:
        """It is prepared already."""
        return self

    def sample(self, *args, **options) -> tuple[Tensor, Stats]:
        """Draw a batch with the contestant's sampler and keep the time."""
        began, worked = time.perf_counter(), time.process_time()
        tokens, stats = self.contestant.sampler.sample(*args, **options)
        self.cpu_seconds.append(time.process_time() - worked)
        self.seconds.append(time.perf_counter() - began)
        return tokens, stats


def run_trials(
    pipe: Pipeline,
    contestants: Sequence[Contestant],
    samples: Sequence[Sample],
    params: SamplingParams,
    seed: int = 0,
    batch_size: int = 1,
    advance: Callable[[], None] | None = None,
) -> list[Trial]:
    """Draw the same samples with every contestant.

    Args:
        pipe: what paints.
        contestants: plain decoding first.
        samples: what is painted.
        params, seed, batch_size: as in ``Pipeline.iterate``.
        advance: called whenever a contestant has drawn a batch.
    """
    prepared = [replace(c, sampler=c.sampler.prepare(pipe.model, pipe.tokenizer)) for c in contestants]
    trials = [Trial(contestant) for contestant in prepared]
    for trial in trials:  # warms up: drafters load, windows are measured
        list(pipe.iterate(samples[:1], trial.contestant.sampler, params, seed))
    draw_in_turn(pipe, trials, samples, params, seed, batch_size, advance)
    return trials


def draw_in_turn(
    pipe: Pipeline,
    trials: Sequence[Trial],
    samples: Sequence[Sample],
    params: SamplingParams,
    seed: int,
    batch_size: int,
    advance: Callable[[], None] | None = None,
) -> None:
    """Fill trials batch by batch, all of them before the next batch; the arguments are those of ``run_trials``."""
    for start in range(0, len(samples), batch_size):
        batch = samples[start : start + batch_size]
        for trial in trials:
            for _, output in pipe.iterate(batch, trial, params, seed, batch_size):
                trial.images += output.images
                trial.stats.append(output.stats)
            if advance:
                advance()


@dataclass(frozen=True)
class Row:
    """One contestant's figures.

    Attributes:
        name, lossless: of the contestant.
        forwards: target forwards a picture, the prefill not counted.
        draft_forwards: calls of the draft network a batch.
        accepted_length: tokens decided by a verify step; also plain decoding's forwards over the sampler's.
        acceptance_rate: accepted over proposed draft tokens; None without drafts.
        seconds: of a batch, wall time.
        speed_up, cpu_speed_up: plain decoding's wall and processor time over the sampler's.
        scores: of the pictures, by name.
    """

    name: str
    lossless: bool
    forwards: float
    draft_forwards: float
    accepted_length: Estimate
    acceptance_rate: float | None
    seconds: float
    speed_up: Estimate
    cpu_speed_up: Estimate
    scores: Mapping[str, Estimate | float]

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def summarise(trials: Sequence[Trial], scores: Sequence[Mapping[str, Estimate | float]] | None = None) -> list[Row]:
    """Figures of all contestants against the first, which decodes plainly.

    Args:
        trials: of the same samples.
        scores: of each contestant's pictures.
    """
    base, rows = trials[0], []
    for number, trial in enumerate(trials):
        stats = Stats.merged(trial.stats)
        forwards = stats.forwards.tolist()
        row = Row(
            name=trial.contestant.name,
            lossless=trial.contestant.lossless,
            forwards=sum(forwards) / len(forwards),
            draft_forwards=stats.draft_forwards / stats.batches,
            accepted_length=ratio_estimate((stats.lengths - 1).tolist(), forwards),
            acceptance_rate=stats.acceptance_rate if int(stats.proposed.sum()) else None,
            seconds=sum(trial.seconds) / len(trial.seconds),
            speed_up=ratio_estimate(base.seconds, trial.seconds),
            cpu_speed_up=ratio_estimate(base.cpu_seconds, trial.cpu_seconds),
            scores=scores[number] if scores else {},
        )
        rows.append(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    names = list(rows[0].scores)
    head = ["sampler", "lossless", "forwards", "accepted length", "seconds", "speed-up", "CPU speed-up", *names]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        figures = [f"{row.forwards:.1f}", row.accepted_length, f"{row.seconds:.2f}", row.speed_up, row.cpu_speed_up]
        figures += (f"{score:.2f}" if isinstance(score, float) else score for score in row.scores.values())
        lines.append([row.name, "yes" if row.lossless else "no", *map(str, figures)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
