"""``vistok bench samplers``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs, output_json


def samplers(
    samplers: Annotated[
        str | None, typer.Option(help="Only those whose names hold one of these words; by commas.")
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

    Example: `vistok bench samplers --samplers "coupled,eagle" --plot samplers.png`
    """

    check_outputs(plot, json)
    import torch

    from vistok.data.scenes import COLOURS, SHAPES
    from vistok.eval.decoding.samplers import choose, run_trials, standard_samplers, summarise, table
    from vistok.eval.decoding.scores import FEATURES, has_features, score_trials
    from vistok.eval.geneval.metadata import scene_prompts
    from vistok.pipelines import expand, pipeline
    from vistok.progress import progress
    from vistok.samplers.cost import best_window, forward_cost
    from vistok.samplers.drafters.eagle import DEFAULT_DRAFTER
    from vistok.zoo import card, cards

    if draft is None and card(model).name == "llamagen-mini":
        draft = next((found.name for found in cards() if found.name == DEFAULT_DRAFTER), None)
    contestants = standard_samplers(draft)
    if samplers is not None:
        contestants = choose(contestants, [word.strip() for word in samplers.split(",")])
    pipe = pipeline(model)
    records = scene_prompts(list(SHAPES), list(COLOURS), seed, prompts_per_task)
    prompts = [record["prompt"] for record in records]
    pipe.check(prompts)
    params, painted = pipe.sampling_params(cfg, top_k=top_k or 0), expand(prompts, num)
    rows_fed = batch_size * (2 if params.guided else 1)
    cost = forward_cost(pipe.model, params, batch_size, repeats=20)
    batches = -(-len(painted) // batch_size)
    with progress("bench", batches * len(contestants)) as advance:
        trials = run_trials(pipe, contestants, painted, params, seed, batch_size, advance)
    rows = summarise(trials, score_trials(records, num, [trial.images for trial in trials]))
    settings = {
        "model": pipe.name,
        "draft": draft,
        "pictures": len(painted),
        "batch_size": batch_size,
        "guidance": params.guidance,
        "temperature": params.temperature,
        "top_k": top_k,
        "seed": seed,
        "threads": torch.get_num_threads(),
    }
    document = {**settings, "forward_cost": cost, "window": best_window(cost), "rows": [row.to_dict() for row in rows]}
    if plot is not None:
        from vistok.eval.decoding.plot import plot as draw
        from vistok.files import atomic_path

        with atomic_path(plot) as temporary:
            draw(rows, cost, temporary)
    if output_json(document, json):
        return
    print(", ".join(f"{name} {value}" for name, value in settings.items() if value is not None))
    curve = ", ".join(f"{width}: {seconds * 1e3:.2f} ms" for width, seconds in cost.items())
    print(
        f"forward pass of {rows_fed} sequences by the tokens of each: {curve}; automatic window {best_window(cost)}\n"
    )
    print(table(rows))
    if draft is None:
        print(f"\nEAGLE and LANTERN are left out: no drafter of '{pipe.name}' is embedded, name one with --draft.")
    if not has_features():
        print(f"\nThe Frechet distance to held-out scenes is left out: the network '{FEATURES}' is not embedded.")
