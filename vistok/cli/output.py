"""Where commands leave their figures: as text, as JSON alone on standard output, or as text and a JSON file.

``--json`` means the same everywhere: ``--json`` or ``--json -`` prints JSON and nothing else, ``--json FILE`` writes
the file beside the text.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

Json = Annotated[
    Path | None,
    typer.Option("--json", metavar="[FILE]", help="Print JSON alone; with a FILE, write it there beside the text."),
]
STANDARD_OUTPUT = "-"
_MEASURING = ("eval", "bench")


def with_json_file(words: Sequence[str], any_name: bool) -> list[str]:
    """Returns the words of a command line in which every ``--json`` names where it goes.

    The word behind ``--json`` is its file if it is ``-`` or ends in ``.json``. Commands that measure take any name, as
    they always did; the others have always had ``--json`` in front of their inputs too. ``--json=FILE`` is always
    taken as it is.

    Args:
        words: behind the command's name.
        any_name: whether any word that is no option is a file.
    """
    told: list[str] = []
    for i, word in enumerate(words):
        told.append(word)
        if word == "--":
            return [*told, *words[i + 1 :]]
        if word != "--json":
            continue
        following = words[i + 1] if i + 1 < len(words) else ""
        file = following and (following[0] != "-" if any_name else following.lower().endswith(".json"))
        if not file and following != STANDARD_OUTPUT:
            told.append(STANDARD_OUTPUT)
    return told


class Commands(TyperGroup):
    """A group of commands whose ``--json`` may stand alone."""

    any_name = False

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Completes ``--json`` and goes on as ever; groups in this one complete their own."""
        if not args or args[0] not in _MEASURING:
            args = with_json_file(args, self.any_name)
        return super().parse_args(ctx, args)


class MeasuringCommands(Commands):
    """Commands whose ``--json`` takes any name for its file."""

    any_name = True


def check_outputs(*paths: Path | None) -> None:
    """Refuse files that cannot be written, or one file for two things, before any work; ``-`` is standard output."""
    from vistok.files import check_writable

    check_distinct(*paths)
    for path in paths:
        if path is not None and str(path) != STANDARD_OUTPUT:
            check_writable(path, folder=False)


def check_pictures(*paths: Path | None) -> None:
    """Refuse pictures that could not be written, before the work that they show."""
    from vistok.data.images import check_image_target

    for path in paths:
        if path is not None:
            check_image_target(path)


def check_distinct(*paths: Path | None) -> None:
    """Refuse one file for two outputs, of which the second would replace the first."""
    from vistok.errors import VistokError

    seen: set[str] = set()
    for path in paths:
        if path is not None and str(path) != STANDARD_OUTPUT:
            place = os.path.realpath(path)
            if place in seen:
                raise VistokError(f"two outputs go to '{path}', and one would replace the other: name two files.")
            seen.add(place)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Prints a table whose cells say all that they were given: brackets in names are no markup, and in a narrow
    terminal long words are broken, not cut.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000  # lines of files and pipes are as long as they have to be
    console.print(table)


def output_json(document: Any, path: Path | None, indent: int | None = 2) -> bool:
    """Write a document as strict JSON to the file that ``--json`` names, or print it.

    Args:
        document: what ``vistok.files.to_json`` takes; a number that is none becomes ``null``.
        path: the option's value.
        indent: spaces of a level; None for one line.

    Returns:
        Whether the document is all that the command prints.
    """
    from vistok.files import to_json, write_json

    if str(path) == STANDARD_OUTPUT:
        print(to_json(document, indent))
        return True
    if path is not None:
        write_json(path, document, indent)
    return False
