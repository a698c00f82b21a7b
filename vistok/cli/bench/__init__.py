"""``vistok bench``: what is fast, and at what quality; each prints a table, and writes JSON with ``--json``."""

from __future__ import annotations

import typer

from vistok.cli.bench import samplers

app = typer.Typer(help="Measure speed beside quality.", no_args_is_help=True)
app.command("samplers")(samplers.samplers)


@app.callback()
def _several() -> None:
    """Keeps the name of a lone subcommand."""
