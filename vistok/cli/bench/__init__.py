"""``vistok bench``: what is fast, and at what quality; each prints a table, and writes JSON with ``--json``."""

from __future__ import annotations

import typer

from vistok.cli.bench import mar, samplers, text

app = typer.Typer(help="Measure speed beside quality.", no_args_is_help=True)
app.command("mar")(mar.mar)
app.command("samplers")(samplers.samplers)
app.command("text")(text.text)
