"""``vistok bench mar``."""

from __future__ import annotations

from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs


def mar(
    model: Annotated[str, typer.Option(help="A MAR that paints scenes.")] = "mar",
    draft: Annotated[str, typer.Option(help="The smaller MAR that drafts.")] = "mar-mini-draft",
    num: Annotated[int, typer.Option(min=1, help="Pictures of each of the 48 classes.")] = 1,
    classes: Annotated[int, typer.Option(min=1, help="Only every so manieth class.")] = 1,
    iterations: Annotated[int, typer.Option(min=1, help="Steps over the picture.")] = 64,
    head_steps: Annotated[
        int | None, typer.Option(min=2, help="Diffusion steps of each token. [default: the model's own]")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="How those steps lie: even or root. [default: the model's own]")
    ] = None,
    prefill: Annotated[float, typer.Option(min=0, max=1, help="cspd: share of the target's own steps.")] = 0.05,
    cfg: Annotated[float | None, typer.Option(help="Scale of guidance. [default: the model's own]")] = None,
    guidance_schedule: Annotated[
        str | None, typer.Option(help="Guidance grows linear, or is constant. [default: the model's own]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="Multiplies the head's noise. [default: the model's own]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the pictures.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time; changes times, not pictures.")] = 1,
    json: Json = None,
) -> None:
    """MAR against continuous speculative decoding, fewer steps and faster head solvers, on the same classes and seeds.

    `detector` is the share of pictures with exactly one object, of the right shape and colour, and `detector - mar` its
    paired difference from plain MAR's. `FD` is the Frechet distance to held-out scenes of one object, which compares
    only runs of one size.

    Example: `vistok bench mar --num 2 --json mar.json`
    """
    check_outputs(json)
    from vistok.cli.bench.report import check_count, write_report
    from vistok.data.scenes import NUM_CLASSES
    from vistok.errors import VistokError
    from vistok.eval.decoding.comparison import table
    from vistok.eval.decoding.continuous import COLUMNS, standard_entries, summarise
    from vistok.eval.decoding.images import draw_in_turn
    from vistok.models.mar import MAR
    from vistok.pipelines import expand, pipeline
    from vistok.progress import progress

    check_count(len(range(0, NUM_CLASSES, classes)) * num)
    pipe = pipeline(model)
    if pipe.family.name != "mar" or pipe.model.classes != NUM_CLASSES:
        raise VistokError(f"'{model}' is no MAR of the scenes' {NUM_CLASSES} classes, which this comparison needs.")
    small = MAR.from_pretrained(draft, prefer_ema=True)
    given = {"head_steps": head_steps, "spacing": spacing, "guidance_schedule": guidance_schedule}
    plain = {"iterations": iterations} | pipe.sampling | {k: value for k, value in given.items() if value is not None}
    entries = standard_entries(small, plain, prefill)
    samples = expand(list(range(0, NUM_CLASSES, classes)), num)
    params = pipe.sampling_params(cfg, temperature)
    with progress("bench", -(-len(samples) // batch_size) * len(entries)) as advance:
        trials = draw_in_turn(pipe, entries, samples, params, seed, batch_size, advance)
    rows = summarise(trials, samples)
    settings = {
        "model": pipe.name,
        "draft": draft,
        "pictures": len(samples),
        "batch_size": batch_size,
        **plain,
        "prefill": prefill,
        "guidance": params.guidance,
        "temperature": params.temperature,
        "seed": seed,
    }
    write_report(settings, rows, [table(rows, COLUMNS, "sampler")], json)
