"""``vistok models``."""

from __future__ import annotations

from typing import Annotated

import typer


def models(
    json: Annotated[bool, typer.Option("--json", help="Print the whole cards as JSON.")] = False,
) -> None:
    """List every model: its task, its size and where its weights come from.

    Example: `vistok models`
    """
    from dataclasses import asdict

    from vistok import zoo

    if json:
        import json as encoder

        print(encoder.dumps([asdict(card) for card in zoo.cards()], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("model", "task", "parameters", "weights", "licence", box=None, header_style="bold")
    for card in zoo.cards():
        size = card.parameters
        count = f"{size / 1e9:.2f}B" if size >= 1e9 else f"{size / 1e6:.1f}M"
        weights = "embedded" if card.embedded else ", ".join(f"{card.source}:{file}" for file in card.files)
        name = card.name if not card.aliases else f"{card.name} ({', '.join(card.aliases)})"
        table.add_row(name, card.task, count, weights, card.licence)
    Console(soft_wrap=True).print(table)
