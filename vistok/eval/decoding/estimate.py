"""Decoding statistics of draft-verify samplers, with confidence intervals.

One record a generated sequence; the definitions are those of the speculative-decoding papers:

- step compression S: tokens that reached the output over target forwards after prefill;
- mean accepted length tau: tokens emitted in a verify step, the bonus token included (autoregressive decoding: 1);
- acceptance rate alpha: accepted over proposed draft tokens, another number than tau;
- speed-up: seconds of autoregressive decoding over seconds of the method, on the same machine and settings.

Intervals are percentile bootstraps over sequences: tokens of one sequence are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from vistok.errors import VistokError


@dataclass(frozen=True)
class DecodeRecord:
    """How one sequence was decoded.

    Args:
        tokens: tokens that reached the output, those after the end token cut off.
        forwards: target-model calls after prefill; one call on conditional and unconditional rows counts once.
        emitted: tokens emitted by each verify step, bonus or resampled token included.
        proposed: draft tokens that were proposed.
        accepted: draft tokens that were accepted.
        seconds: decoding time without prefill.
        draft_forwards: calls of the draft model.
    """

    tokens: int
    forwards: int
    emitted: tuple[int, ...] = ()
    proposed: int = 0
    accepted: int = 0
    seconds: float = 0.0
    draft_forwards: int = 0


@dataclass(frozen=True)
class Estimate:
    """A figure with the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class DecodeSummary:
    """Figures of many sequences; None where the records do not say."""

    sequences: int
    tokens: int
    forwards: int
    draft_forwards: int
    step_compression: Estimate
    mean_accepted_length: Estimate | None
    acceptance_rate: Estimate | None
    tokens_per_second: Estimate | None

    def to_json(self) -> dict:
        return asdict(self)


def _bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, confidence: float, resamples: int, seed: int
) -> Estimate:
    """Percentile bootstrap of ``statistic(indices [..., n]) -> [...]``."""
    drawn = np.random.default_rng(seed).integers(0, n, (resamples, n))
    low, high = np.quantile(statistic(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(statistic(np.arange(n))), float(low), float(high))


def ratio_estimate(
    numerators: Sequence[float],
    denominators: Sequence[float],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Ratio of two sums over the same sequences, with its bootstrap interval.

    Args:
        numerators: one a sequence.
        denominators: one a sequence, with a positive sum.
        confidence: of the interval.
        resamples: bootstrap samples.
        seed: of the bootstrap.
    """
    top, bottom = np.asarray(numerators, float), np.asarray(denominators, float)
    # A resample may hold only sequences without a denominator; it says nothing, so it is left at 0.
    return _bootstrap(
        lambda i: top[i].sum(-1) / np.maximum(bottom[i].sum(-1), np.finfo(float).tiny),
        len(top),
        confidence,
        resamples,
        seed,
    )


def summarise_decoding(
    records: Sequence[DecodeRecord], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> DecodeSummary:
    """Step compression, mean accepted length, acceptance rate and speed of many sequences.

    Args:
        records: at least one.
        confidence: of the intervals.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        VistokError: without records, or with one that made no forward.
    """
    if not records:
        raise VistokError("decoding statistics need at least one decoded sequence.")
    if min(record.forwards for record in records) < 1:
        raise VistokError("a decoded sequence without a target forward has no step compression.")

    def ratio(top: Callable[[DecodeRecord], float], bottom: Callable[[DecodeRecord], float]) -> Estimate | None:
        denominators = [bottom(record) for record in records]
        if not sum(denominators):
            return None
        return ratio_estimate([top(record) for record in records], denominators, confidence, resamples, seed)

    return DecodeSummary(
        sequences=len(records),
        tokens=sum(record.tokens for record in records),
        forwards=sum(record.forwards for record in records),
        draft_forwards=sum(record.draft_forwards for record in records),
        step_compression=ratio(lambda r: r.tokens, lambda r: r.forwards),
        mean_accepted_length=ratio(lambda r: sum(r.emitted), lambda r: len(r.emitted)),
        acceptance_rate=ratio(lambda r: r.accepted, lambda r: r.proposed),
        tokens_per_second=ratio(lambda r: r.tokens, lambda r: r.seconds),
    )


def speed_up(
    baseline: Sequence[float], method: Sequence[float], confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """Ratio of mean decoding times, baseline over method, of independent runs.

    Args:
        baseline: seconds of autoregressive decoding.
        method: seconds of the method for the same prompts and settings.
        confidence: of the interval.
        resamples: bootstrap samples.
        seed: of the bootstrap.

    Raises:
        VistokError: if one of them is empty.
    """
    if not len(baseline) or not len(method):
        raise VistokError("a speed-up needs times of the baseline and of the method.")
    slow, fast = np.asarray(baseline, float), np.asarray(method, float)
    random = np.random.default_rng(seed)
    means = [x[random.integers(0, len(x), (resamples, len(x)))].mean(1) for x in (slow, fast)]
    low, high = np.quantile(means[0] / means[1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(slow.mean() / fast.mean()), float(low), float(high))


def ideal_speed_up(mean_accepted_length: float, draft_length: int, cost_ratio: float) -> float:
    """Speed-up if nothing but model calls cost time: tau / (g c + 1), c the cost of a draft call over a target call."""
    return mean_accepted_length / (draft_length * cost_ratio + 1)
