"""``vistok bench``: what is fast, and at what quality; each prints a table, and writes JSON with ``--json``."""

from __future__ import annotations

import typer

from vistok.cli.bench import context, generators, mar, samplers, text
from vistok.cli.output import MeasuringCommands
from vistok.cli.shared import add_commands

app = typer.Typer(cls=MeasuringCommands, help="Measure speed beside quality.", no_args_is_help=True)
add_commands(
    app,
    {
        "context": context.context,
        "generators": generators.generators,
        "mar": mar.mar,
        "samplers": samplers.samplers,
        "text": text.text,
    },
)
