"""MAR against continuous speculative decoding, fewer steps and faster solvers: calls, time and scores, same images.

Figures of a row:

- ``forwards``: passes of the target's transformer that an image waited for; ``prefixes``: sequences that went through
  it for an image, guidance branches not counted;
- ``target_calls``, ``target_rows``: calls of the target's head for a batch, and their rows for an image;
  ``draft_calls``, ``draft_rows``: likewise of the draft's;
- ``acceptance_rate``: accepted over proposed drafts, None without drafts; ``fallbacks``: residual loops that failed, of
  all images;
- ``seconds`` of a batch, ``speed_up`` and ``cpu_speed_up`` over plain MAR, in wall and processor time;
- ``detector``, ``change`` from plain MAR's and ``distance``: see ``vistok.eval.decoding.objects``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vistok.eval.decoding.comparison import Column, Entry, Figure, Row, Trial, time_figures
from vistok.eval.decoding.images import stats_of
from vistok.eval.decoding.objects import object_scores
from vistok.samplers.continuous.cspd import ContinuousSpeculative
from vistok.samplers.continuous.mar import MaskedAutoregressive

if TYPE_CHECKING:
    from vistok.models.mar import MAR
    from vistok.pipelines import Sample

COLUMNS = (
    Column("forwards", "forwards", ".1f"),
    Column("prefixes", "prefixes", ".0f"),
    Column("head calls", "target_calls", ".0f"),
    Column("draft's", "draft_calls", ".0f"),
    Column("head rows", "target_rows", ".0f"),
    Column("draft's", "draft_rows", ".0f"),
    Column("accepted", "acceptance_rate"),
    Column("seconds", "seconds"),
    Column("speed-up", "speed_up"),
    Column("CPU speed-up", "cpu_speed_up"),
    Column("detector", "detector"),
    Column("detector - mar", "change"),
    Column("FD", "distance"),
)
WINDOWS = (4, 8)
SOLVER_STEPS = (5, 10, 20)
FEWER = (2, 4)  # divisors of the steps over the image
STRICT = {"window": 4, "prefill": 0.65, "inner_temperature": 10.0}  # keeps the mini pair's scores


def standard_entries(draft: MAR | None, plain: Mapping[str, int | str], prefill: float) -> list[Entry]:
    """Returns what a comparison runs; plain MAR comes first. Only exact speculation is lossless beside it.

    Args:
        draft: the smaller model; speculative decoding is left out without one.
        plain: options of plain MAR, and of both models of a pair: ``iterations``, ``head_steps``,
            ``guidance_schedule``, ``spacing``.
        prefill: share of the steps that the target takes alone.
    """
    found = [Entry("mar", MaskedAutoregressive(**plain))]
    for mode in ("exact", "reference") if draft is not None else ():
        for window in WINDOWS:
            sampler = ContinuousSpeculative(draft, mode, window=window, prefill=prefill, **plain)
            found.append(Entry(f"cspd {mode}, window {window}", sampler, mode == "exact"))
    for divisor in FEWER:  # what a draft has to beat
        iterations = max(1, plain["iterations"] // divisor)
        fewer = {**plain, "iterations": iterations}
        found.append(Entry(f"mar, {iterations} iterations", MaskedAutoregressive(**fewer), lossless=False))
        if draft is not None:
            both = ContinuousSpeculative(draft, "reference", **STRICT, **fewer)
            found.append(Entry(f"cspd strict, {iterations} iterations", both, lossless=False))
    for steps in SOLVER_STEPS:
        fast = MaskedAutoregressive(**{**plain, "head_steps": steps}, solver="dpm++")
        found.append(Entry(f"mar, dpm++ {steps}", fast, lossless=False))
    return found


def summarise(trials: Sequence[Trial], samples: Sequence[Sample]) -> list[Row]:
    """Returns the figures of all trials, plain MAR's first."""
    rows = []
    for trial, scores in zip(trials, object_scores(trials, samples), strict=True):
        stats = stats_of(trial)
        figures: dict[str, Figure] = {
            "forwards": float(stats.forwards.double().mean()),
            "prefixes": stats.target_prefixes / len(samples),
            "target_calls": stats.target_calls / stats.batches,
            "target_rows": stats.target_rows / len(samples),
            "draft_calls": stats.draft_calls / stats.batches,
            "draft_rows": stats.draft_rows / len(samples),
            "acceptance_rate": stats.acceptance_rate if int(stats.proposed.sum()) else None,
            "fallbacks": stats.fallbacks,
        }
        figures |= time_figures(trials[0], trial) | scores
        rows.append(Row(trial.entry.name, trial.entry.lossless, figures))
    return rows
