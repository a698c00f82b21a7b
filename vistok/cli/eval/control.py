"""``vistok eval control``: how well pictures follow control pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.output import Json


def control(
    model: Annotated[str, typer.Option(help="A ControlAR of scenes, or the folder of one.")] = "llamagen-mini-control",
    kind: Annotated[str, typer.Option(help="What the control pictures show: canny or seg.")] = "canny",
    strength: Annotated[
        list[float] | None, typer.Option(help="How much they count; may be given again. [default: 1, then 0]")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="Held-out scenes.")] = 32,
    sampler: Annotated[str | None, typer.Option(help="How tokens are drawn. [default: the model's plain one]")] = None,
    cfg: Annotated[float | None, typer.Option(help="Scale of guidance. [default: the model's own]")] = None,
    seed: Annotated[int, typer.Option(help="Of the pictures.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Picture of the controls, and below each what was drawn.")] = None,
    json: Json = None,
) -> None:
    """Draw held-out scenes from their captions and control pictures, and measure how well the pictures follow both.

    `edges` is the F1 of the objects' outlines, which may be a pixel apart; `seg` the mean intersection over union of
    the shapes' regions and the background; `caption` the share of pictures with as many objects of each shape, and of
    each colour that is told, as the caption says. All have 95 % intervals over pictures.

    Example: vistok eval control --kind seg --num 64 --strength 1 --strength 0
    """
    from vistok.cli.output import check_outputs, check_pictures, output_json
    from vistok.errors import VistokError, unknown_name

    check_pictures(out)
    check_outputs(out, json)
    import torch

    from vistok.data.images import grid, save_image, to_pil, to_tensor
    from vistok.data.scenes.controls import RENDERERS
    from vistok.eval.control import held_out_controls, score
    from vistok.pipelines import pipeline
    from vistok.progress import progress

    if kind not in RENDERERS:
        raise unknown_name("kind of scenes' control pictures", kind, list(RENDERERS))
    pipe = pipeline(model)
    if not getattr(pipe.model, "controls", ()):
        raise VistokError(f"'{model}' follows no control pictures: name a ControlAR.")
    if pipe.conditional_on != "text":
        raise VistokError(f"'{model}' paints classes, and scenes are asked for by captions: name a model of captions.")
    scenes, said, controls = held_out_controls(num, pipe.size, kind)
    pipe.check([each.text for each in said])
    params, shown, rows = pipe.sampling_params(cfg), to_pil(controls), []
    strengths = strength or [1.0, 0.0]
    for each in strengths:
        pipe.with_control(shown[0], kind, each)  # mistakes come early
    sheets = [list(shown)]
    with progress("control", num * len(strengths)) as advance:
        for each in strengths:
            images = []
            for number, (picture, statement) in enumerate(zip(shown, said, strict=True)):
                following = pipe.with_control(picture, kind, each)
                own = (seed + number) % (1 << 64)
                images += following(statement.text, sampler=sampler, params=params, seed=own).images
                advance()
            sheets.append(images)
            found = score(scenes, said, torch.stack([to_tensor(image) for image in images]))
            rows.append({"strength": each, "edges": found.edges, "seg": found.segmentation, "caption": found.caption})
    drawn = {"sampler": sampler or pipe.family.plain, "guidance": params.guidance, "seed": seed}
    settings = {"model": pipe.name, "kind": kind, "pictures": num, **drawn}
    if not output_json({**settings, "rows": [_plain(row) for row in rows]}, json):
        _tell(settings, rows)
    if out is not None:
        save_image(grid([image for sheet in sheets for image in sheet], len(shown)), out)


def _tell(settings: dict, rows: list[dict]) -> None:
    print(", ".join(f"{name} {value}" for name, value in settings.items()))
    print("\n| strength | edges | seg | caption |\n| --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row['strength']:g} | {row['edges']} | {row['seg']} | {row['caption']} |")


def _plain(row: dict) -> dict:
    from dataclasses import asdict, is_dataclass

    return {name: asdict(value) if is_dataclass(value) else value for name, value in row.items()}
