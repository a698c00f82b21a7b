"""``vistok bench samplers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs


def samplers(
    samplers: Annotated[
        str | None,
        typer.Option(
            help="By commas: samplers with their options, e.g. ar,sjd:window=16:init=repeat-up, or words that select "
            "some of the standard comparison. [default: all of it]"
        ),
    ] = None,
    prompts_per_task: Annotated[int, typer.Option(min=1, help="Prompts of each of the six GenEval tasks.")] = 8,
    num: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Of prompts and pictures.")] = 0,
    model: Annotated[str, typer.Option(help="A model that paints scenes.")] = "llamagen",
    draft: Annotated[
        str | None, typer.Option(help="The model's EAGLE network. [default: the embedded one, if there is one]")
    ] = None,
    cfg: Annotated[
        float | None, typer.Option(help="Scale of classifier-free guidance. [default: the model's own]")
    ] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Keep the k most likely codes. [default: all]")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time; changes times, not pictures.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Draw the comparison into this picture file.")] = None,
    json: Json = None,
) -> None:
    """Samplers on one model, with the same prompts and seeds: forwards, accepted lengths, time, and scores.

    `detector` is the share of pictures that the scene detector finds fulfilled, with a 95 % interval over prompts, and
    `detector - AR` its paired difference from plain decoding. `FD` is the Frechet distance to held-out scenes.

    Examples:

    `vistok bench samplers --samplers coupled,eagle --plot samplers.png`

    `vistok bench samplers --samplers sjd:window=8,sjd:window=16:init=repeat-up,lantern:delta=0.2`
    """
    from vistok.eval.plots import check_plot

    check_plot(plot)
    check_outputs(plot, json)
    from vistok.cli.bench.report import write_report
    from vistok.data.scenes import COLOURS, SHAPES
    from vistok.eval.decoding.comparison import table
    from vistok.eval.decoding.images import draw_in_turn, images_of
    from vistok.eval.decoding.samplers import COLUMNS, choose_samplers, standard_entries, summarise
    from vistok.eval.decoding.scores import FEATURES, has_features, score_trials
    from vistok.eval.geneval.metadata import scene_prompts
    from vistok.pipelines import expand, pipeline
    from vistok.progress import progress
    from vistok.samplers.cost import best_window, forward_cost
    from vistok.samplers.drafters.eagle import DEFAULT_DRAFTER
    from vistok.zoo import cards

    pipe = pipeline(model)
    if draft is None and pipe.name == "llamagen-mini":
        draft = next((found.name for found in cards() if found.name == DEFAULT_DRAFTER), None)
    entries = standard_entries(draft)
    if samplers is not None:
        entries = choose_samplers(pipe, entries, samplers)
    records = scene_prompts(list(SHAPES), list(COLOURS), seed, prompts_per_task)
    prompts = [record["prompt"] for record in records]
    pipe.check(prompts)
    params, painted = pipe.sampling_params(cfg, top_k=top_k or 0), expand(prompts, num)
    cost = forward_cost(pipe.model, params, batch_size, repeats=20)
    with progress("bench", -(-len(painted) // batch_size) * len(entries)) as advance:
        trials = draw_in_turn(pipe, entries, painted, params, seed, batch_size, advance)
    decodes = pipe.tokenizer is not None
    scores = score_trials(records, num, [images_of(trial) for trial in trials]) if decodes else None
    rows = summarise(trials, scores)
    settings = {
        "model": pipe.name,
        "draft": draft,
        "pictures": len(painted),
        "batch_size": batch_size,
        "guidance": params.guidance,
        "temperature": params.temperature,
        "top_k": top_k,
        "seed": seed,
    }
    curve = ", ".join(f"{width}: {seconds * 1e3:.2f} ms" for width, seconds in cost.items())
    paragraphs = [
        f"forward pass of {batch_size} images by the tokens of each: {curve}; automatic window {best_window(cost)}",
        table(rows, COLUMNS, "sampler"),
    ]
    if draft is None and samplers is None:
        paragraphs.append(
            f"EAGLE and LANTERN are left out: no drafter of '{pipe.name}' is embedded, name one with --draft."
        )
    if not decodes:
        paragraphs.append(f"Scores are left out: '{pipe.name}' has no decoder, so its codes make no pictures.")
    elif not has_features():
        paragraphs.append(
            f"The Frechet distance to held-out scenes is left out: the network '{FEATURES}' is not embedded."
        )
    write_report(settings, rows, paragraphs, json, {"forward_cost": cost, "window": best_window(cost)})
    if plot is not None:
        from vistok.eval.decoding.plot import plot as draw

        draw(rows, cost, plot)
