"""``vistok models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vistok.cli.output import Json, check_outputs, output_json
from vistok.cli.shared import refuse_given

if TYPE_CHECKING:
    from vistok.zoo import ModelCard


def models(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Tell all about this one.")] = None,
    task: Annotated[str | None, typer.Option(help="Only models for this, e.g. text-to-image or draft.")] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="Only those whose weights are part of vistok.")] = False,
    json: Json = None,
) -> None:
    """List every model: its task, its size and where its weights come from.

    Examples:

    `vistok models --task image-tokenizer`

    `vistok models llamagen-b-256`
    """
    from vistok import zoo
    from vistok.errors import unknown_name

    check_outputs(json)
    if name is not None:
        refuse_given(context, "chooses among all models, and one is named", "task", "embedded")
    cards = zoo.cards() if name is None else [zoo.card(name)]
    tasks = sorted({card.task for card in zoo.cards()})
    if task is not None and task not in tasks:
        raise unknown_name("task", task, tasks)
    cards = [card for card in cards if task in (None, card.task) and (card.embedded or not embedded)]
    if output_json(cards, json):
        return
    if name is not None:
        _tell(cards[0])
        return
    width = max((len(card.name) for card in cards), default=0)
    for card in cards:
        where = "embedded" if card.embedded else card.source or "your file"
        line = f"{card.name:{width}}  {count_text(card.parameters):>6}  {SHORT.get(card.task, card.task):16}"
        print(f"{line}  {where}" if len(line) + len(where) < 78 else f"{line}\n    {where}")
    print("\n`vistok models NAME` tells files, aliases, licence and figures of one.")


# Names of tasks that would not fit beside a long name.
SHORT = {"visual-question-answering": "visual-question"}


def count_text(parameters: int) -> str:
    """Returns a number of parameters in three digits: ``3.4M``."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.{2 if name == 'B' else 1}f}{name}"
    return str(parameters)


def _tell(card: ModelCard) -> None:
    """Prints a card, an entry a line."""
    where = "embedded" if card.embedded else card.source or "publishes nothing by hub id: name your file"
    entries = {
        "name": card.name,
        "also": ", ".join(card.aliases),
        "task": card.task,
        "family": card.family,
        "parameters": f"{card.parameters:,}",
        "weights": where,
        "files": ", ".join(card.files),
        "works with": ", ".join(f"{part} as {role}" for role, part in card.parts.items()),
        "licence": card.licence,
        "recipe": card.recipe or "",
        "data": card.data or "",
        "measured": ", ".join(f"{key} {value}" for key, value in card.metrics.items()),
        "paper": f"arXiv {card.paper}" if card.paper else "",
    }
    for key, value in entries.items():
        if value:
            print(f"{key + ':':12} {value}")
