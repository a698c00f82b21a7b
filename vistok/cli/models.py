"""``vistok models``."""

from __future__ import annotations

from vistok.cli.output import Json, check_outputs, output_json


def models(
    json: Json = None,
) -> None:
    """List every model: its task, its size and where its weights come from.

    Example: `vistok models`
    """
    from vistok import zoo

    check_outputs(json)
    if output_json(zoo.cards(), json):
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
