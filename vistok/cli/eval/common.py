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


def print_results(results: list[Result], json: Path | None, title: str = "") -> None:
    """Print the results as a table and write them, once for all processes."""
    from vistok.eval.protocol import write_results

    if not is_main():
        return
    if json is not None:
        write_results(json, results)
    if str(json) == "-":
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "metric", "value", title=title or None)
    for result in results:
        value = f"{result.value:.4f}" + (f" ± {result.std:.4f}" if result.std is not None else "")
        table.add_row(result.name, result.protocol.metric, value)
        for key, figure in result.details.items():
            table.add_row("", key, f"{figure:.4f}")
    console = Console()
    console.print(table)
    protocol = results[0].protocol
    parts = (protocol.extractor, protocol.weights, protocol.resize, protocol.normalisation, protocol.precision)
    parts = (*parts, protocol.reference, f"{protocol.samples} samples")
    console.print("protocol: " + ", ".join(part for part in parts if part))
