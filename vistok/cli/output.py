"""Where commands leave their figures: a JSON file, standard output alone, or neither."""

from __future__ import annotations

from pathlib import Path


def check_outputs(*paths: Path | None) -> None:
    """Refuse files that cannot be written, before any work is done; ``-`` is standard output."""
    from vistok.files import check_writable

    for path in paths:
        if path is not None and str(path) != "-":
            check_writable(path)


def write_json(text: str, path: Path | None) -> bool:
    """Write a JSON text to a file, or print it for ``-``; returns whether it is all that the command prints."""
    if str(path) == "-":
        print(text)
        return True
    if path is not None:
        from vistok.files import atomic_path

        with atomic_path(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return False
