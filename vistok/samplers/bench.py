"""Samplers side by side: the same prompts and seeds, forwards, accepted lengths, seconds, and scores."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor

from vistok.samplers.autoregressive import Autoregressive, Sampler
from vistok.samplers.eagle import Eagle
from vistok.samplers.jacobi import INITS, SpeculativeJacobi
from vistok.samplers.lantern import Lantern
from vistok.samplers.stats import Stats

Paint = Callable[[Sampler], tuple[Tensor, Stats]]
Score = Callable[[Tensor], Mapping[str, float]]


@dataclass(frozen=True)
class Row:
    """One sampler's figures.

    Attributes:
        name: of the sampler and its options.
        lossless: whether its pictures follow the model's law.
        forwards: target forwards a picture, the prefill not counted.
        accepted_length: tokens decided by a verify step on average.
        seconds: of a batch: the median run.
        forward_ratio, speed_up: plain decoding's forwards and seconds over the sampler's.
        scores: of the pictures.
    """

    name: str
    lossless: bool
    forwards: float
    accepted_length: float
    seconds: float
    forward_ratio: float
    speed_up: float
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def standard_samplers(codebook: Tensor | None = None, drafter: bool = True) -> dict[str, tuple[Sampler, bool]]:
    """What a comparison runs, by name, with whether it is lossless; plain decoding comes first.

    Args:
        codebook: of the tokenizer, for LANTERN; left out without one.
        drafter: whether the model has an EAGLE drafter.
    """
    found: dict[str, tuple[Sampler, bool]] = {"ar": (Autoregressive(), True)}
    for init in INITS:
        found[f"sjd published, {init}"] = (SpeculativeJacobi(init=init, variant="published"), True)
    for window in (8, 16, 32, 64):
        found[f"sjd coupled, window {window}"] = (SpeculativeJacobi(window), True)
    if not drafter:
        return found
    found["eagle dynamic"] = (Eagle(), True)
    found["eagle static"] = (Eagle(tree="mc_sim_7b_63"), True)
    if codebook is None:
        return found
    for delta in (0.05, 0.1, 0.2, 0.4):
        found[f"lantern delta {delta}"] = (Lantern(delta=delta, codebook=codebook), False)
    for factor in (2.0, 5.0):
        lantern = Lantern(k=10, delta=factor, mode="multiplicative", tree="mc_sim_7b_63", codebook=codebook)
        found[f"lantern++ lambda {factor:g}"] = (lantern, False)
    return found


def bench(
    samplers: Mapping[str, tuple[Sampler, bool]],
    paint: Paint,
    score: Score | None = None,
    repeats: int = 3,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Run every sampler on the same prompts and seeds.

    Args:
        samplers: by name, with whether each is lossless; the first is what the others are compared with.
        paint: draws the pictures with a sampler: codes [B, n] and statistics.
        score: judges the codes, e.g. by a detector.
        repeats: runs of which the median time counts.
        report: called with each row as it is ready.
    """
    rows: list[Row] = []
    for name, (sampler, lossless) in samplers.items():
        runs = [paint(sampler) for _ in range(repeats)]
        tokens, stats = runs[0]
        seconds = statistics.median(run[1].seconds for run in runs)
        forwards = float(stats.forwards.double().mean())
        base = rows[0] if rows else None
        row = Row(
            name,
            lossless,
            forwards,
            stats.mean_accepted_length,
            seconds,
            base.forwards / forwards if base else 1.0,
            base.seconds / seconds if base else 1.0,
            dict(score(tokens)) if score else {},
        )
        rows.append(row)
        if report:
            report(row)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    scores = list(rows[0].scores) if rows else []
    head = ["sampler", "lossless", "forwards", "of AR", "accepted", "seconds", "speed-up", *scores]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines.append(
            [
                row.name,
                "yes" if row.lossless else "no",
                f"{row.forwards:.1f}",
                f"{row.forward_ratio:.2f}x",
                f"{row.accepted_length:.2f}",
                f"{row.seconds:.2f}",
                f"{row.speed_up:.2f}x",
                *(f"{row.scores[name]:.3f}" for name in scores),
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows: Sequence[Row], path: str | Path) -> None:
    """Forwards saved and time saved of every sampler, as bars in a picture file; needs matplotlib (extra ``dev``)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 0.4 * len(rows) + 1.5), layout="constrained")
    places = range(len(rows))
    axes.barh([p - 0.2 for p in places], [row.forward_ratio for row in rows], 0.4, label="fewer target forwards")
    axes.barh([p + 0.2 for p in places], [row.speed_up for row in rows], 0.4, label="less time")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks(list(places), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("times plain autoregressive decoding")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
