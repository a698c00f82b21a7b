"""``vistok data``: the embedded world's pictures and prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import check_pictures
from vistok.cli.shared import add_commands, say

app = typer.Typer(help="Make data of the embedded world.", no_args_is_help=True)


def scenes(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and metadata.jsonl.")],
    num: Annotated[int, typer.Option(help="How many scenes.")] = 64,
    size: Annotated[int, typer.Option(help="Side in pixels; the models know 64 and 128.")] = 64,
    seed: Annotated[int, typer.Option(help="Which world.")] = 0,
    control: Annotated[
        list[str] | None,
        typer.Option(help="Also write control pictures into a folder of this name: canny or seg; may be given again."),
    ] = None,
) -> None:
    """Write scenes as PNG files, with captions, classes, objects, boxes and questions in metadata.jsonl.

    Example: `vistok data scenes --num 64 --out scenes/ --control canny`
    """
    from vistok.data.scenes.files import write_scenes

    write_scenes(out, num, size, seed, control or ())
    say(f"{num} scenes of {size}x{size} pixels in {out}; what is on them is in {out / 'metadata.jsonl'}")


def control(
    picture: Annotated[Path, typer.Argument(help="A picture of any size.")],
    out: Annotated[Path, typer.Option(help="File for its control picture.")],
    kind: Annotated[str, typer.Option(help="What it is to show: canny.")] = "canny",
    low: Annotated[int, typer.Option(help="Gradient from which a pixel goes on with an edge.")] = 100,
    high: Annotated[int, typer.Option(help="Gradient from which a pixel begins an edge.")] = 200,
) -> None:
    """Write the edges of a picture, for `vistok sample --control`; needs the extra vistok[control].

    Example: `vistok data control photo.jpg --out edges.png`
    """
    from vistok.data.annotators import canny
    from vistok.data.images import load_image, save_image
    from vistok.errors import unknown_name

    if kind != "canny":
        raise unknown_name("kind of control that is made of pictures", kind, ["canny"])
    check_pictures(out)
    save_image(canny(load_image(picture), low, high), out)
    say(f"edges of {picture} in {out}")


def geneval(
    out: Annotated[Path, typer.Option(help="File for the prompts, JSON lines in GenEval's format.")],
    per_task: Annotated[int, typer.Option(help="Prompts of each of the six tasks.")] = 100,
    seed: Annotated[int, typer.Option(help="Which prompts.")] = 0,
) -> None:
    """Write GenEval prompts about shapes and colours, for `vistok eval geneval` on the embedded world.

    Example: `vistok data geneval --out prompts.jsonl`
    """
    from vistok.data.scenes import COLOURS, SHAPES
    from vistok.errors import VistokError
    from vistok.eval.geneval.metadata import scene_prompts, write_metadata

    if per_task < 1:
        raise VistokError(f"--per-task must be at least 1, got {per_task}.")
    records = scene_prompts(SHAPES, COLOURS, seed, per_task)
    write_metadata(out, records)
    say(f"{len(records)} prompts in {out}")


add_commands(app, {"scenes": scenes, "control": control, "geneval": geneval})
