"""Accuracy of a multimodal model against the visual tokens that it keeps, for every compression method in one run.

The model answers each question greedily with all tokens, then with each method at each share; beside the accuracy
stand the language model's prefill FLOPs and key-value cache (``vistok.projectors.cost``) and the measured prefill time.
"""

from __future__ import annotations

import inspect
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vistok.errors import VistokError
from vistok.eval.answers.ask import prompt_for
from vistok.eval.plots import new_figure
from vistok.progress import progress
from vistok.projectors import COMPRESSORS, FastV, compress, compressor_class
from vistok.projectors.apply.compress import Compression, active
from vistok.projectors.cost import kv_cache_bytes, prefill_flops

COLOURS = [f"C{i}" for i in (0, 1, 2, 3, 4, 5, 6, 8, 9)]  # matplotlib's, without the grey of the baselines
SEEDS = 3  # draws that the random baseline is averaged over
TIMED = 16  # prompts of a batch whose prefill is timed


@dataclass(frozen=True)
class Asked:
    """A question about a picture, the answers that count as right, and its kind."""

    picture: Image.Image
    question: str
    answers: tuple[str, ...]
    kind: str = ""


@dataclass(frozen=True)
class Point:
    """One method at one share of the tokens.

    Attributes:
        method: name, ``all`` for the plain model.
        keep: share asked for; None where the method chooses.
        accuracy: mean score of the answers.
        kinds: the same by kind of question.
        visual_tokens: mean over questions; for FastV, of the layers from K on.
        prefill_flops, cache_bytes: of the language model, mean over prompts; cache in half precision.
        prefill_seconds: from pixels to the first new token, a prompt in a batch; median of three.
    """

    method: str
    keep: float | None
    accuracy: float
    kinds: dict[str, float] = field(repr=False)
    visual_tokens: float
    prefill_flops: float
    cache_bytes: float
    prefill_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def scene_questions(side: int, scenes: int, each: int) -> list[Asked]:
    """Questions about held-out scenes, evenly over kinds and answers.

    Args:
        side: of the pictures in pixels.
        scenes: how many pictures.
        each: questions about each.
    """
    from vistok.data.images import to_pil
    from vistok.data.scenes import render, sample_scenes
    from vistok.data.scenes.splits import HELD_OUT
    from vistok.data.scenes.vqa import draw_questions

    drawn = sample_scenes(scenes, HELD_OUT)
    rows = zip(to_pil(render(drawn, side)), draw_questions(drawn, each), strict=True)
    return [Asked(picture, q.text, (q.answer,), q.kind) for picture, row in rows for q in row]


def read_questions(path: str | Path) -> list[Asked]:
    """Questions of a JSONL file: ``image`` (a path, relative to the file), ``question``, ``answers`` or ``answer``.

    Raises:
        VistokError: no such file, or a line without the entries.
    """
    from vistok.data.images import load_image

    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise VistokError(f"cannot read the questions '{path}': {error.strerror}.") from error
    asked = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            answers = entry["answers"] if "answers" in entry else [entry["answer"]]
            where, question = path.parent / entry["image"], str(entry["question"])
        except (ValueError, TypeError, KeyError) as error:
            raise VistokError(f"line {number} of '{path}' needs an image, a question and answers.") from error
        asked.append(Asked(load_image(where), question, tuple(map(str, answers)), str(entry.get("type", ""))))
    if not asked:
        raise VistokError(f"the question file '{path}' is empty.")
    return asked


def method_names(methods: str) -> list[str]:
    """``all`` training-free methods, ``none``, or those of a list with commas.

    Raises:
        VistokError: an unknown name, or a method that must be trained.
    """
    trained = COMPRESSORS["tokenpacker"].name
    if methods == "all":
        return [name for name in COMPRESSORS if name != trained]
    if methods == "none":
        return []
    names = [name.strip() for name in methods.split(",")]
    for name in names:
        compressor_class(name)
    if trained in names:
        raise VistokError("tokenpacker is a trained projector: evaluate a model that has it, such as tokenpacker-mini.")
    return names


def parse_shares(text: str) -> list[float]:
    """``"100,50,25"`` per cent to shares, falling.

    Raises:
        VistokError: an entry is no percentage in (0, 100].
    """
    try:
        shares = sorted({float(entry.strip().removesuffix("%")) / 100 for entry in text.split(",")}, reverse=True)
    except ValueError:
        shares = []
    if not shares or not all(0 < share <= 1 for share in shares):
        raise VistokError(f"--keep is '{text}': give per cent of the visual tokens, such as 100,50,25.")
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
    """All points, the plain model first.

    Args:
        model, processor: see ``vistok.eval.answers.ask.load``.
        asked: the questions.
        methods: names of compressors.
        shares: of the visual tokens; 1.0 is the plain model's and runs once.
        score: of an answer against the right ones.
        batch_size: prompts at a time.
        max_new_tokens: of an answer.
        positions: of the kept tokens, see :func:`vistok.projectors.apply.compress`.

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
                seeds = [{"seed": seed} for seed in range(SEEDS)] if name == "random" else [{}]
                runs.append((name, share, [kind(keep=share, **seed) for seed in seeds]))
    batches = [
        _inputs(model, processor, asked[start : start + batch_size]) for start in range(0, len(asked), batch_size)
    ]
    points = []
    with progress("methods", len(runs)) as advance:
        for name, share, compressors in runs:
            found = []
            for compressor in compressors:
                attached = nullcontext(active(model)) if compressor is None else compress(model, compressor, positions)
                with attached as compression:
                    found.append(_point(model, processor, asked, batches, compression, score, max_new_tokens))
            points.append(Point(name, share, **_mean(found)))
            advance()
    return points


def _inputs(model: Any, processor: Any, asked: Sequence[Asked]) -> dict[str, Any]:
    texts = [prompt_for(processor, a.question) for a in asked]
    inputs = processor(
        images=[a.picture for a in asked], text=texts, padding=True, padding_side="left", return_tensors="pt"
    ).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return inputs


def _point(
    model: Any,
    processor: Any,
    asked: Sequence[Asked],
    batches: list[dict[str, Any]],
    compression: Compression | None,
    score: Callable[[str, Sequence[str]], float],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Figures of the model as it is now, with a compressor at work or none."""
    config, image = model.config.get_text_config(), model.config.image_token_id
    method = None if compression is None else compression.compressor
    full = method.layer if isinstance(method, FastV) else 0
    scores, kept, flops, cache = [], [], [], []
    for batch in batches:
        tokens = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
        new = tokens[:, batch["input_ids"].shape[1] :]
        texts = processor.batch_decode(new, skip_special_tokens=True)
        scores += [score(text.strip(), a.answers) for text, a in zip(texts, asked[len(scores) :], strict=False)]
        visual = (batch["input_ids"] == image).sum(1).tolist()
        after = visual if compression is None else compression.last.after
        for total, seen, left in zip(batch["attention_mask"].sum(1).tolist(), visual, after, strict=True):
            lengths = [total] * full + [total - seen + left] * (config.num_hidden_layers - full)
            kept.append(left)
            flops.append(prefill_flops(config, lengths))
            cache.append(kv_cache_bytes(config, lengths))
    kinds: dict[str, list[float]] = {}
    for a, value in zip(asked, scores, strict=True):
        kinds.setdefault(a.kind, []).append(value)
    return {
        "accuracy": statistics.fmean(scores),
        "kinds": {kind: statistics.fmean(values) for kind, values in sorted(kinds.items()) if kind},
        "visual_tokens": statistics.fmean(kept),
        "prefill_flops": statistics.fmean(flops),
        "cache_bytes": statistics.fmean(cache),
        "prefill_seconds": _prefill_seconds(model, batches[0]),
    }


def _prefill_seconds(model: Any, batch: dict[str, Any]) -> float:
    """Seconds a prompt from pixels to the first token, of the first prompts of a batch; median of three.

    Processor time on a CPU, where other processes would count as well; time on the clock on a GPU.
    """
    batch = {name: value[:TIMED] for name, value in batch.items()}
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


def _mean(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures averaged over draws."""
    kinds = {kind: statistics.fmean(f["kinds"][kind] for f in found) for kind in found[0]["kinds"]}
    plain = {key: statistics.fmean(f[key] for f in found) for key in found[0] if key != "kinds"}
    return plain | {"kinds": kinds}


def plot_keep_curves(points: Sequence[Point], path: str | Path, title: str) -> None:
    """Draw accuracy against kept tokens, one line a method.

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
    figure.savefig(path, dpi=120)
