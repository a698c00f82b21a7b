"""``vistok eval``: thin commands over :mod:`vistok.eval`; each prints a table, and writes JSON with ``--json``."""

from __future__ import annotations

import typer

from vistok.cli.eval import (
    answers,
    control,
    edits,
    fid,
    geneval,
    grounding,
    language,
    needle,
    pope,
    reconstruction,
    vqa,
)
from vistok.cli.output import MeasuringCommands
from vistok.cli.shared import add_commands

app = typer.Typer(cls=MeasuringCommands, help="Score pictures, reconstructions and answers.", no_args_is_help=True)
add_commands(
    app,
    {
        "measure": fid.measure,
        "fid": fid.measure,
        "metrics": fid.metrics,
        "stats": fid.stats,
        "geneval": geneval.geneval,
        "clipscore": geneval.clipscore,
        "reconstruction": reconstruction.reconstruction,
        "grounding": grounding.grounding,
        "language": language.language,
        "needle": needle.needle,
        "answers": answers.answers,
        "compare": fid.compare,
        "control": control.control,
        "edits": edits.edits,
        "vqa": vqa.vqa,
        "pope": pope.pope,
    },
)
