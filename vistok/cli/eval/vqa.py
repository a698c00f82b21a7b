"""``vistok eval vqa``: accuracy of a multimodal model against kept visual tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.eval.common import Json
from vistok.cli.output import check_outputs, output_json, print_table
from vistok.cli.shared import refuse_given


def vqa(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Embedded model, folder or hub id of a LLaVA-type model.")],
    methods: Annotated[
        str | None,
        typer.Option(
            help="all, none, or names with commas; see docs/projectors.md. "
            "[default: all, or none for a model with a compressor of its own]"
        ),
    ] = None,
    keep: Annotated[str, typer.Option(help="Shares of the visual tokens, in per cent.")] = "100,50,25,11,6",
    questions: Annotated[
        Path | None, typer.Option(help='JSONL of {"image": ..., "question": ..., "answers": [...]}; held-out scenes.')
    ] = None,
    scorer: Annotated[str, typer.Option(help="exact, textvqa, vqav2, docvqa (ANLS) or choice.")] = "exact",
    scenes: Annotated[int, typer.Option(min=1, help="Held-out scenes, without --questions.")] = 128,
    scene_split: Annotated[str, typer.Option(help="plain, small (0.6 of the radius) or hard (0.4, many).")] = "plain",
    kinds: Annotated[str | None, typer.Option(help="Questions of these kinds alone, with commas.")] = None,
    per_scene: Annotated[int, typer.Option(min=1, max=12, help="Questions about each.")] = 4,
    positions: Annotated[str, typer.Option(help="compact, or original: kept tokens keep their numbers.")] = "compact",
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 32,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 8,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against kept tokens into this picture.")] = None,
    json: Json = None,
) -> None:
    """Accuracy, prefill FLOPs, cache and prefill time against kept visual tokens, for all methods in one run.

    Example: vistok eval vqa --model llava-mini --methods all --keep 100,50,25,11,6 --plot curves.png
    """
    from vistok.errors import VistokError, unknown_name
    from vistok.eval.answers.benchmarks import SCORERS
    from vistok.eval.plots import check_plot
    from vistok.projectors.apply.compress import active

    if dtype not in ("float32", "bfloat16", "float16"):
        raise VistokError(f"--dtype is '{dtype}': choose float32, bfloat16 or float16.")
    if scorer not in SCORERS:
        raise unknown_name("scorer", scorer, list(SCORERS))
    if positions not in ("compact", "original"):
        raise VistokError(f"--positions is '{positions}': choose compact or original.")

    check_plot(plot)
    check_outputs(plot, json)
    from vistok.data.scenes.vqa import KINDS, scene_side
    from vistok.data.scenes.vqa_splits import SPLITS
    from vistok.eval.answers.ask import load
    from vistok.eval.answers.keep_curves import (
        keep_curves,
        method_names,
        parse_shares,
        plot_keep_curves,
        read_questions,
        scene_questions,
        usable,
    )
    from vistok.eval.answers.prompts import check_question

    names, shares = method_names(methods or "all"), parse_shares(keep)
    of_methods = ("is of methods, and none is put on the model", "keep", "positions")
    if not names:
        refuse_given(context, *of_methods)
    chosen = None if kinds is None else [kind.strip() for kind in kinds.split(",")]
    for kind in chosen or ():
        if kind not in KINDS:
            raise unknown_name("kind of question", kind, list(KINDS))
    if scene_split not in SPLITS:
        raise unknown_name("split of scenes", scene_split, list(SPLITS))
    if questions is not None:
        chosen_by = ("kinds", "scene_split", "scenes", "per_scene")
        refuse_given(context, "chooses among scenes, and --questions names a file", *chosen_by)
    refused: list[str] = []
    asked = None if questions is None else read_questions(questions, refused)
    network, processor = load(model, device, dtype)
    if methods is None and active(network) is not None:
        names = []
        refuse_given(context, *of_methods)
    if asked is None:
        asked = scene_questions(scene_side(network.config), scenes, per_scene, scene_split, chosen)
    for question in asked:
        check_question(processor, question.question)
    asked = usable(network, processor, asked, refused)
    for sentence in refused:
        typer.echo(f"left out, {sentence}", err=True)
    points = keep_curves(
        network, processor, asked, names, shares, SCORERS[scorer], batch_size, max_new_tokens, positions
    )
    if not output_json([point.to_dict() for point in points], json):
        print_points(points, f"{model}: {len(asked)} questions")
    if plot is not None:
        plot_keep_curves(points, plot, f"{model}: {len(asked)} questions")


def print_points(points: list, title: str) -> None:
    """The table, one line a point."""
    full = points[0].accuracy
    rows = [
        (
            p.method,
            "own" if p.keep is None else f"{100 * p.keep:g} %",
            f"{p.visual_tokens:.1f}",
            "{:.3f} [{:.3f}, {:.3f}]".format(p.accuracy, *p.interval),
            f"{100 * p.accuracy / full:.1f} %" if full else "-",
            f"{p.prefill_flops / 1e6:.1f}",
            f"{p.cache_bytes / 1024:.1f}",
            f"{1e3 * p.prefill_seconds:.2f}",
        )
        for p in points
    ]
    headings = ("method", "keep", "tokens", "accuracy", "of full", "MFLOPs", "cache KiB", "prefill ms")
    print_table(headings, rows, title)
