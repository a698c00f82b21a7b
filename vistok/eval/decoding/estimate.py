"""Ratios of sums with their confidence intervals: how all figures of a comparison are estimated.

The definitions are those of the speculative-decoding papers:

- accepted length: tokens decided by a verify step, the target's own token included (plain decoding: 1);
- acceptance rate: accepted over proposed draft tokens, another number than that;
- speed-up: seconds of plain decoding over seconds of the method, on the same machine and settings.

Intervals are percentile bootstraps over sequences, never over tokens, which depend on each other within a sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure with the bounds of its confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio_estimate(numerators: Sequence[float], denominators: Sequence[float], **options: float) -> Estimate:
    """Returns the ratio of two sums over the same units; see ``paired_estimate``.

    Args:
        numerators: one a unit.
        denominators: one a unit, with a positive sum.
        options: ``confidence``, ``resamples`` and ``seed`` of the bootstrap.
    """
    # A resample may hold only units without a denominator; it says nothing, so it is left at 0.
    return paired_estimate(
        lambda top, bottom: top / np.maximum(bottom, np.finfo(float).tiny), numerators, denominators, **options
    )


def paired_estimate(
    figure: Callable[..., np.ndarray],
    *columns: Sequence[float],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Returns a figure of sums over the same units, with its bootstrap interval.

    Args:
        figure: from the sum of each column to the figure, elementwise.
        columns: one number a unit each.
        confidence: of the interval; of a single unit nothing is known, and the interval is its value.
        resamples: bootstrap samples.
        seed: of the bootstrap.
    """
    from scipy.stats import bootstrap

    def statistic(*parts: np.ndarray, axis: int = -1) -> np.ndarray:
        return figure(*(part.sum(axis) for part in parts))

    data = [np.asarray(column, float) for column in columns]
    value = float(statistic(*data))
    if len(data[0]) < 2:
        return Estimate(value, value, value)
    drawn = bootstrap(
        data,
        statistic,
        paired=True,
        vectorized=True,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return Estimate(value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))
