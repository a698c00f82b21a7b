"""MAR against continuous speculative decoding, fewer steps and faster solvers: calls, time and scores, same pictures.

Every batch is drawn by all contestants in turn before the next begins, so that whatever else the machine does slows all
of them alike. A picture is right if the exact detector of scenes finds one object in it, of the class's shape and
colour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from vistok.data.images import to_tensor
from vistok.eval.decoding.estimate import Estimate, ratio_estimate
from vistok.eval.decoding.samplers import Contestant, Trial, draw_in_turn
from vistok.samplers.continuous.cspd import ContinuousSpeculative
from vistok.samplers.continuous.mar import MaskedAutoregressive
from vistok.samplers.continuous.stats import ContinuousStats
from vistok.samplers.params import SamplingParams

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.models.mar import MAR
    from vistok.pipelines import Pipeline, Sample

WINDOWS = (4, 8)
SOLVER_STEPS = (5, 10, 20)
FEWER = (2, 4)  # divisors of the steps over the picture
STRICT = {"window": 4, "prefill": 0.65, "inner_temperature": 10.0}  # keeps the mini pair's scores


def contestants(draft: MAR | None, plain: Mapping[str, int | str], prefill: float) -> list[Contestant]:
    """What a comparison runs; plain MAR comes first.

    Args:
        draft: the smaller model; speculative decoding is left out without one.
        plain: options of plain MAR, and of both models of a pair: ``iterations``, ``head_steps``,
            ``guidance_schedule``, ``spacing``.
        prefill: share of the steps that the target takes alone.
    """
    found = [Contestant("mar", MaskedAutoregressive(**plain))]
    for mode in ("exact", "reference") if draft is not None else ():
        for window in WINDOWS:
            sampler = ContinuousSpeculative(draft, mode, window=window, prefill=prefill, **plain)
            found.append(Contestant(f"cspd {mode}, window {window}", sampler, mode == "exact"))
    for divisor in FEWER:  # what a draft has to beat
        iterations = max(1, plain["iterations"] // divisor)
        fewer = {**plain, "iterations": iterations}
        found.append(Contestant(f"mar, {iterations} iterations", MaskedAutoregressive(**fewer), lossless=False))
        if draft is not None:
            both = ContinuousSpeculative(draft, "reference", **STRICT, **fewer)
            found.append(Contestant(f"cspd strict, {iterations} iterations", both, lossless=False))
    for steps in SOLVER_STEPS:
        fast = MaskedAutoregressive(**{**plain, "head_steps": steps}, solver="dpm++")
        found.append(Contestant(f"mar, dpm++ {steps}", fast, lossless=False))
    return found


def run_trials(
    pipe: Pipeline,
    entered: Sequence[Contestant],
    samples: Sequence[Sample],
    params: SamplingParams,
    seed: int,
    batch_size: int,
    advance: Callable[[], None],
) -> list[Trial]:
    """Draw the same samples with every contestant."""
    trials = [Trial(contestant) for contestant in entered]
    draw_in_turn(pipe, trials, samples, params, seed, batch_size, advance)
    return trials


@dataclass(frozen=True)
class Row:
    """One contestant's figures.

    Attributes:
        name, lossless: of the contestant.
        forwards: passes of the target's transformer that a picture waited for.
        prefixes: sequences that went through it for a picture, guidance branches not counted.
        target_calls, target_rows: calls of the target's head for a batch, and their rows for a picture.
        draft_calls, draft_rows: likewise of the draft's.
        acceptance_rate: accepted over proposed drafts; None without drafts.
        fallbacks: residual loops that failed, of all pictures.
        seconds: wall time of a batch.
        speed_up, cpu_speed_up: plain MAR's time over the contestant's, wall and processor.
        detector: share of right pictures.
        change: by how much it differs from plain MAR's, over the same pictures.
        distance: Frechet distance to held-out scenes of one object; None without the feature network.
    """

    name: str
    lossless: bool
    forwards: float
    prefixes: float
    target_calls: float
    target_rows: float
    draft_calls: float
    draft_rows: float
    acceptance_rate: float | None
    fallbacks: int
    seconds: float
    speed_up: Estimate
    cpu_speed_up: Estimate
    detector: Estimate
    change: Estimate
    distance: float | None

    def to_dict(self) -> dict:
        """Plain values for JSON."""
        return asdict(self)


def right(image: Image, label: int) -> bool:
    """Whether a picture shows one object, of the class's shape and colour."""
    from vistok.data.scenes import COLOURS, SHAPES
    from vistok.eval.geneval.detectors import SceneDetector

    shape, colour = divmod(label, len(COLOURS))
    detector = SceneDetector()
    found = [each for each in detector.detect([image])[0] if each.score >= detector.options.threshold]
    return [(each.label, each.colour) for each in found] == [(SHAPES[shape], COLOURS[colour])]


def distances(trials: Sequence[Trial]) -> list[float | None]:
    """Frechet distance of each contestant's pictures to held-out scenes of one object."""
    from vistok.data.scenes import render
    from vistok.data.scenes.splits import REFERENCE, single_object_scenes
    from vistok.eval.decoding.scores import has_features, picture_statistics
    from vistok.eval.sets.frechet import frechet_distance
    from vistok.models.vision.scenes import SIDE, load_scene_features

    if not has_features():
        return [None] * len(trials)
    network = load_scene_features()

    scenes = torch.cat([render(single_object_scenes(REFERENCE, chunk), SIDE) for chunk in range(8)])
    real = picture_statistics(network, scenes)
    drawn = (torch.stack([to_tensor(image) for image in trial.images]) for trial in trials)
    return [frechet_distance(real, picture_statistics(network, pictures)) for pictures in drawn]


def summarise(trials: Sequence[Trial], samples: Sequence[Sample]) -> list[Row]:
    """The figures of all contestants, plain MAR first."""
    base, rows, pictures = trials[0], [], len(samples)
    scores = [[right(image, x.condition) for image, x in zip(trial.images, samples, strict=True)] for trial in trials]
    for trial, correct, distance in zip(trials, scores, distances(trials), strict=True):
        stats = ContinuousStats.merged(trial.stats)
        rows.append(
            Row(
                name=trial.contestant.name,
                lossless=trial.contestant.lossless,
                forwards=float(stats.forwards.double().mean()),
                prefixes=stats.target_prefixes / pictures,
                target_calls=stats.target_calls / stats.batches,
                target_rows=stats.target_rows / pictures,
                draft_calls=stats.draft_calls / stats.batches,
                draft_rows=stats.draft_rows / pictures,
                acceptance_rate=stats.acceptance_rate if int(stats.proposed.sum()) else None,
                fallbacks=stats.fallbacks,
                seconds=sum(trial.seconds) / len(trial.seconds),
                speed_up=ratio_estimate(base.seconds, trial.seconds),
                cpu_speed_up=ratio_estimate(base.cpu_seconds, trial.cpu_seconds),
                detector=ratio_estimate(correct, [1] * pictures),
                change=ratio_estimate([a - b for a, b in zip(correct, scores[0], strict=True)], [1] * pictures),
                distance=distance,
            )
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    head = ["sampler", "lossless", "forwards", "prefixes", "head calls", "draft's", "head rows", "draft's", "accepted"]
    head += ["seconds", "speed-up", "CPU speed-up", "detector", "detector - mar", "FD"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        counts = (row.prefixes, row.target_calls, row.draft_calls, row.target_rows, row.draft_rows)
        lines.append(
            [
                row.name,
                "yes" if row.lossless else "no",
                f"{row.forwards:.1f}",
                *(f"{count:.0f}" for count in counts),
                "" if row.acceptance_rate is None else f"{row.acceptance_rate:.2f}",
                f"{row.seconds:.2f}",
                str(row.speed_up),
                str(row.cpu_speed_up),
                str(row.detector),
                str(row.change),
                "" if row.distance is None else f"{row.distance:.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
