"""How all comparisons report: settings and tables as text, or everything as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistok.cli.output import output_json
from vistok.errors import VistokError

if TYPE_CHECKING:
    from vistok.eval.decoding.comparison import Row


def check_count(pictures: int) -> None:
    """Refuse a comparison of fewer pictures than the Frechet distance needs, before a model is loaded."""
    if pictures < 2:
        raise VistokError("the Frechet distance needs at least 2 pictures: give a smaller --classes or a larger --num.")


def write_report(
    settings: Mapping[str, Any],
    rows: Sequence[Row],
    paragraphs: Iterable[str],
    json: Path | None,
    measured: Mapping[str, Any] | None = None,
) -> None:
    """Writes JSON where it is wanted, and prints the settings and paragraphs unless JSON is printed alone.

    Args:
        settings: of the run; those that are None are not printed.
        rows: all figures.
        paragraphs: tables and remarks, printed below the settings.
        json: the option's value.
        measured: what was measured beside the rows.
    """
    import torch

    settings = {**settings, "threads": torch.get_num_threads()}
    document = {**settings, **(measured or {}), "rows": [row.to_dict() for row in rows]}
    if output_json(document, json):
        return
    print(", ".join(f"{name} {value}" for name, value in settings.items() if value is not None))
    for paragraph in paragraphs:
        print(f"\n{paragraph}")
