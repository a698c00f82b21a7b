"""``vistok eval grounding``: mask and box overlap, second looks, and answers by identifier."""

from __future__ import annotations

from typing import Annotated

import typer

from vistok.cli.eval.common import Json
from vistok.cli.output import check_outputs, output_json


def grounding(
    model: Annotated[str, typer.Option(help="Embedded model or folder that a grounding recipe made.")],
    pictures: Annotated[int, typer.Option(min=1, help="Held-out scenes or rooms that are asked about.")] = 128,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    json: Json = None,
) -> None:
    """Figures of a model that grounds texts (READ, Pink, Visual Perception Token, Chat-3D v2), with 95 % intervals.

    Example: vistok eval grounding --model runs/read-mini/export --pictures 256
    """
    check_outputs(json)
    from vistok.eval.grounding import evaluate_grounding
    from vistok.runtime import resolve_device

    figures = evaluate_grounding(model, pictures, resolve_device(device))
    if output_json({name: vars(figure) for name, figure in figures.items()}, json):
        return
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]")
