"""``vistok train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import Json, check_outputs, output_json
from vistok.cli.shared import say


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, as those in recipes/.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; an earlier run there is resumed. [default: runs/NAME]")
    ] = None,
    json: Json = None,
) -> None:
    """Train a model by a recipe: on a CPU, a GPU, or many with `torchrun --nproc-per-node 2 -m vistok train ...`.

    A recipe names a task, the network's shape, and pictures: scenes of the embedded world, or a folder of your own
    (docs/training.md). Kill the run at any moment: the same command goes on from the last checkpoint.

    Example: `vistok train recipes/llamagen-mini.yaml --out runs/llamagen-mini`
    """
    from vistok.train.recipe import Recipe

    check_outputs(json)
    loaded = Recipe.load(recipe)
    from vistok.train.tasks import build_task
    from vistok.train.trainer import Trainer

    directory = out if out is not None else Path("runs") / loaded.name
    trainer = Trainer(loaded, build_task(loaded), directory)
    metrics = trainer.train()
    if not trainer.accelerator.is_main_process:
        return
    if not output_json(metrics, json, indent=None):
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        say(f"{loaded.name}: {figures}; weights in {directory / 'export'}")
