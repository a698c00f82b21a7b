"""``vistok eval``: thin commands over :mod:`vistok.eval`; each prints a table, and writes JSON with ``--json``."""

from __future__ import annotations

import typer

from vistok.cli.eval import answers, fid, geneval, language, pope, reconstruction, vqa
from vistok.cli.output import MeasuringCommands

app = typer.Typer(cls=MeasuringCommands, help="Score pictures, reconstructions and answers.", no_args_is_help=True)
app.command("measure")(fid.measure)
app.command("fid")(fid.measure)
app.command("metrics")(fid.metrics)
app.command("stats")(fid.stats)
app.command("geneval")(geneval.geneval)
app.command("clipscore")(geneval.clipscore)
app.command("reconstruction")(reconstruction.reconstruction)
app.command("language")(language.language)
app.command("answers")(answers.answers)
app.command("compare")(fid.compare)
app.command("vqa")(vqa.vqa)
app.command("pope")(pope.pope)
