"""What the evaluation commands share: their options, and how results are printed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vistok.cli.output import Json

__all__ = ["Json"]

if TYPE_CHECKING:
    from vistok.eval.protocol import Result

Extractor = Annotated[str, typer.Option(help="inception, dinov2, clip or scenes-features.")]
Weights = Annotated[str | None, typer.Option(help="The network's weights: a path; for dinov2 and clip also a hub id.")]
Resize = Annotated[
    str | None, typer.Option(help="clean, tf1, pytorch-fid or torchmetrics; by default what the .npz says, else clean.")
]
Precision = Annotated[
    str, typer.Option(help="float32, or bfloat16: faster, and another protocol than that of published numbers.")
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures a forward pass.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")]
Cache = Annotated[
    Path | None, typer.Option(help="Keep features here; the same command goes on from them after an interruption.")
]


def is_main() -> bool:
    """Whether this process prints and writes; under `accelerate launch` one does."""
    from vistok.runtime import processes

    return processes().is_main_process


def print_results(results: list[Result], json: Path | None, title: str = "") -> bool:
    """Write the results, and print them as a table unless they are printed as JSON, once for all processes.

    Returns:
        Whether the command may print more.
    """
    from vistok.cli.output import output_json, print_table

    if not is_main() or output_json([result.to_json() for result in results], json):
        return False
    rows = []
    for result in results:
        spread = f" ± {figure_text(result.std)}" if result.std is not None else ""
        rows.append((result.name, result.protocol.metric, figure_text(result.value) + spread))
        rows += [("", key, figure_text(figure)) for key, figure in result.details.items()]
    print_table(("what", "metric", "value"), rows, title)
    for protocol in dict.fromkeys(_seen_by(result) for result in results):
        print(f"protocol: {protocol}")
    return True


def _seen_by(result: Result) -> str:
    protocol = result.protocol
    parts = (protocol.extractor, protocol.weights, protocol.resize, protocol.normalisation, protocol.precision)
    parts = (*parts, protocol.reference, f"{protocol.samples} samples")
    return ", ".join(part for part in parts if part)


def figure_text(figure: float | None) -> str:
    """Returns a figure with four digits, zero without a sign; ``none`` stands where there is no figure."""
    return "none" if figure is None else f"{round(figure, 4) + 0.0:.4f}"
