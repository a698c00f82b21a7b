"""Accuracy of a multimodal model against the visual tokens that it keeps, for every compression method in one run.

The model answers each question greedily with all tokens, then with each method at each share; beside the accuracy
stand the language model's prefill FLOPs and key-value cache (``vistok.projectors.cost``) and the measured prefill time.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vistok.errors import VistokError
from vistok.eval.answers.ask import check_trained
from vistok.eval.answers.prompts import model_inputs
from vistok.eval.answers.questions import Asked, read_questions, scene_questions
from vistok.eval.decoding.estimate import ratio_estimate
from vistok.eval.plots import new_figure, save_figure
from vistok.progress import progress
from vistok.projectors import COMPRESSORS, compress, compressor_class
from vistok.projectors.apply.compress import Compression, active
from vistok.projectors.cost import kv_cache_bytes, prefill_flops

__all__ = [
    "Asked",
    "Point",
    "keep_curves",
    "method_names",
    "parse_shares",
    "plot_keep_curves",
    "read_questions",
    "scene_questions",
    "usable",
]

COLOURS = [f"C{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)]  # matplotlib's, without the grey of the baselines
SEEDS = 3  # draws that the random baseline is averaged over
TIMED = 16  # prompts of the batch whose prefill is timed


@dataclass(frozen=True)
class Point:
    """The figures of one method at one share of the tokens.

    Attributes:
        method: name, ``all`` for the plain model.
        keep: share asked for; None where the method chooses.
        accuracy: mean score of the answers.
        interval: of that, 95 %, by the bootstrap over pictures.
        kinds: the same by kind of question.
        visual_tokens: mean over questions; for FastV, of the layers from K on.
        prefill_flops, cache_bytes: of the language model, mean over prompts; cache in half precision.
        prefill_seconds: from pixels to the first new token, a prompt in a batch; median of three.
    """

    method: str
    keep: float | None
    accuracy: float
    interval: tuple[float, float]
    kinds: dict[str, float] = field(repr=False)
    visual_tokens: float
    prefill_flops: float
    cache_bytes: float
    prefill_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def method_names(methods: str) -> list[str]:
    """Returns the names of methods: ``all`` training-free ones, ``none``, or those of a list with commas.

    Raises:
        VistokError: an unknown name, or a method that must be trained.
    """
    if methods == "all":
        return [name for name, kind in COMPRESSORS.usable().items() if not (kind.trained or kind.temporal)]
    if methods == "none":
        return []
    names = [name.strip() for name in methods.split(",")]
    for name in names:
        check_trained(compressor_class(name))
    return names


def parse_shares(text: str) -> list[float]:
    """Returns the shares that a text gives in per cent, such as ``"100,50,25"``, largest first.

    Raises:
        VistokError: an entry is no percentage in (0, 100], or is below 1 without its sign, as a share is.
    """
    entries = [entry.strip() for entry in text.split(",")]
    try:
        shares = sorted({float(entry.removesuffix("%")) / 100 for entry in entries}, reverse=True)
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise VistokError(f"--keep is '{text}': give per cent of the visual tokens, such as 100,50,25.")
    for entry in entries:
        if not entry.endswith("%") and float(entry) < 1:
            raise VistokError(
                f"--keep is in per cent here, so {entry} is {entry}%: write {100 * float(entry):g} for that share, or "
                f"{entry}%."
            )
    return shares


def keep_curves(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    methods: Sequence[str],
    shares: Sequence[float],
    score: Callable[[str, Sequence[str]], float],
    batch_size: int = 32,
    max_new_tokens: int = 8,
    positions: str = "compact",
) -> list[Point]:
    """Measures the plain model, and each method at each share of the visual tokens.

    Args:
        model, processor: see ``vistok.eval.answers.ask.load``.
        asked: the questions.
        methods: names of compressors.
        shares: of the visual tokens; 1.0 is the plain model's and runs once.
        score: of an answer against the right ones.
        batch_size: prompts at a time.
        max_new_tokens: of an answer.
        positions: of the kept tokens, see :func:`vistok.compress`.

    Raises:
        VistokError: methods for a model that has a compressor already.
    """
    if methods and active(model) is not None:
        raise VistokError("this model has a compressor of its own: evaluate it with no methods (--methods none).")
    runs: list[tuple[str, float | None, list[Any]]] = [("all", 1.0, [None])]
    for name in methods:
        kind = compressor_class(name)
        if "keep" not in inspect.signature(kind).parameters:
            runs.append((name, None, [kind()]))
            continue
        for share in shares:
            if share < 1.0:
                drawn = "seed" in inspect.signature(kind).parameters
                seeds = [{"seed": seed} for seed in range(SEEDS)] if drawn else [{}]
                runs.append((name, share, [kind(keep=share, **seed) for seed in seeds]))
    batches = [
        batch
        for start in range(0, len(asked), batch_size)
        for batch in _batches(model, processor, asked[start : start + batch_size])
    ]
    timed = _batches(model, processor, asked[: min(TIMED, batch_size)])[0]
    points = []
    with progress("methods", len(runs)) as advance:
        for name, share, compressors in runs:
            found = []
            for compressor in compressors:
                attached = nullcontext(active(model)) if compressor is None else compress(model, compressor, positions)
                with attached as compression:
                    found.append(_point(model, processor, asked, batches, timed, compression, score, max_new_tokens))
            points.append(Point(name, share, **_mean(found, asked)))
            advance()
    return points


def usable(model: Any, processor: Any, asked: Sequence[Asked], refused: list[str]) -> list[Asked]:
    """Returns the questions that a model's processor takes, so that one bad picture does not end a run.

    Args:
        model, processor: see ``vistok.eval.answers.ask.load``.
        asked: the questions.
        refused: takes a sentence for each question that is left out.

    Raises:
        VistokError: it takes none of them.
    """
    good, verdicts = [], {}
    for a in asked:
        shape = a.picture.size  # what a processor can take depends on nothing else
        if shape not in verdicts:
            try:
                model_inputs(model, processor, [a.picture], ["?"])
                verdicts[shape] = None
            except VistokError as error:
                verdicts[shape] = str(error)
        if verdicts[shape] is None:
            good.append(a)
        else:
            refused.append(f"{a.source or a.question}: {verdicts[shape]}")
    if not good:
        raise VistokError(f"none of the {len(asked)} questions can be asked; {refused[-1]}")
    return good


def _batches(model: Any, processor: Any, asked: Sequence[Asked]) -> list[dict[str, Any]]:
    """Inputs of questions in one batch, or in several if the processor cannot set these pictures side by side."""
    try:
        return [model_inputs(model, processor, [a.picture for a in asked], [a.question for a in asked])]
    except VistokError:
        if len(asked) == 1:
            raise
    half = len(asked) // 2
    return _batches(model, processor, asked[:half]) + _batches(model, processor, asked[half:])


def _point(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    batches: list[dict[str, Any]],
    timed: dict[str, Any],
    compression: Compression | None,
    score: Callable[[str, Sequence[str]], float],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Figures of the model as it is now, with a compressor at work or none."""
    config, image = model.config.get_text_config(), model.config.image_token_id
    scores, kept, flops, cache = [], [], [], []
    for batch in batches:
        tokens = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        new = tokens[:, batch["input_ids"].shape[1] :]
        texts = processor.batch_decode(new, skip_special_tokens=True)
        scores += [score(text.strip(), a.answers) for text, a in zip(texts, asked[len(scores) :], strict=False)]
        if compression is None:
            kept += (batch["input_ids"] == image).sum(1).tolist()
            lengths = [[total] * config.num_hidden_layers for total in batch["attention_mask"].sum(1).tolist()]
        else:
            kept += compression.last.visual
            lengths = compression.last.lengths
        flops += [prefill_flops(config, layers) for layers in lengths]
        cache += [kv_cache_bytes(config, layers) for layers in lengths]
    kinds: dict[str, list[float]] = {}
    for a, value in zip(asked, scores, strict=True):
        kinds.setdefault(a.kind, []).append(value)
    return {
        "scores": scores,
        "kinds": {kind: statistics.fmean(values) for kind, values in sorted(kinds.items()) if kind},
        "visual_tokens": statistics.fmean(kept),
        "prefill_flops": statistics.fmean(flops),
        "cache_bytes": statistics.fmean(cache),
        "prefill_seconds": _prefill_seconds(model, timed),
    }


def _prefill_seconds(model: Any, batch: dict[str, Any]) -> float:
    """Seconds a prompt from pixels to the first token, of a batch; median of three.

    Processor time on a CPU, where other processes would count as well; time on the clock on a GPU.
    """
    cuda = model.device.type == "cuda"
    clock = time.perf_counter if cuda else time.process_time
    seconds = []
    for _ in range(3):
        started = clock()
        model.generate(**batch, max_new_tokens=1, do_sample=False)
        if cuda:
            torch.cuda.synchronize(model.device)
        seconds.append(clock() - started)
    return statistics.median(seconds) / len(batch["input_ids"])


def _mean(found: list[dict[str, Any]], asked: Sequence[Asked]) -> dict[str, Any]:
    """Figures averaged over draws, with the accuracy's interval."""
    kinds = {kind: statistics.fmean(f["kinds"][kind] for f in found) for kind in found[0]["kinds"]}
    plain = {key: statistics.fmean(f[key] for f in found) for key in found[0] if key not in ("kinds", "scores")}
    right: dict[int, list[float]] = {}
    for a, *scores in zip(asked, *(f["scores"] for f in found), strict=True):
        right.setdefault(id(a.picture), []).append(statistics.fmean(scores))
    estimate = ratio_estimate([sum(row) for row in right.values()], [len(row) for row in right.values()])
    return plain | {"accuracy": estimate.value, "interval": (estimate.low, estimate.high), "kinds": kinds}


def plot_keep_curves(points: Sequence[Point], path: str | Path, title: str) -> None:
    """Draws accuracy against kept tokens, one line a method.

    Args:
        points: of :func:`keep_curves`.
        path: picture to write.
        title: over the axes.

    Raises:
        VistokError: if matplotlib is not installed.
    """
    full = points[0]
    figure = new_figure(7.5, 4.5)
    axes = figure.add_subplot()
    axes.axhline(full.accuracy, color="0.4", linewidth=1, linestyle="--", label="all tokens")
    baselines = {"uniform": "s:", "random": "x:"}
    names = list(dict.fromkeys(point.method for point in points[1:]))
    for i, name in enumerate(names):
        mine = [point for point in points[1:] if point.method == name]
        style = baselines.get(name, "o-" if mine[0].keep is not None else "*")
        colour = "0.5" if name in baselines else COLOURS[i % len(COLOURS)]
        tokens, accuracy = [p.visual_tokens for p in mine], [p.accuracy for p in mine]
        axes.plot(tokens, accuracy, style, color=colour, label=name, markersize=5)
    axes.set_xscale("log", base=2)
    ticks = sorted({round(p.visual_tokens) for p in points if p.keep is not None})
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens")
    axes.set_ylabel("accuracy")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    save_figure(figure, path, dpi=120)
