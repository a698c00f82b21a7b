"""``vistok bench``: what is fast, and at what quality; each prints a table, and writes JSON with ``--json``."""

from __future__ import annotations

import typer

from vistok.cli.bench import context, generators, mar, samplers, text
from vistok.cli.output import MeasuringCommands

app = typer.Typer(cls=MeasuringCommands, help="Measure speed beside quality.", no_args_is_help=True)
app.command("context")(context.context)
app.command("generators")(generators.generators)
app.command("mar")(mar.mar)
app.command("samplers")(samplers.samplers)
app.command("text")(text.text)
