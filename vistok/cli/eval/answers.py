"""``vistok eval answers``: scores of multimodal benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vistok.cli.eval.common import Json, print_results


def answers(
    predictions: Annotated[Path, typer.Argument(help='JSONL of {"prediction": ..., "answers": [...]}.')],
    benchmark: Annotated[str, typer.Option(help="textvqa, vqav2, exact, docvqa (ANLS), choice, pope or mme.")],
    json: Json = None,
) -> None:
    """Score answers of a multimodal model.

    Example: vistok eval answers predictions.jsonl --benchmark pope
    """
    from vistok.cli.output import check_outputs
    from vistok.eval.answers.benchmarks import read_benchmark, score_records
    from vistok.eval.protocol import Protocol, Result

    check_outputs(json)
    records = read_benchmark(predictions, benchmark)  # once: the file may be a pipe
    figures = score_records(records, benchmark)
    (headline, value), *_ = figures.items()
    protocol = Protocol(f"{benchmark} {headline}", samples=len(records))
    details = {key: figure for key, figure in figures.items() if key != headline}
    print_results([Result(predictions.name, value, protocol, details=details)], json)
