"""Packages of other people: one module and its entry points, installed for the time of a test."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def install(tmp_path: Path) -> Callable[[str, str, str], Run]:
    """Installs a package as pip would, and returns ``vistok`` as a command that sees it.

    ``install(source, group, entry)`` writes the module ``toy`` with this source and an entry point such as
    ``"mine = toy:Mine"`` in the group; the command's arguments are those of ``vistok``.
    """

    def installed(source: str, group: str, entry: str) -> Run:
        site = tmp_path / "site"
        information = site / "toy-1.0.dist-info"
        information.mkdir(parents=True)
        (site / "toy.py").write_text(source, encoding="utf-8")
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n", encoding="utf-8")
        (information / "entry_points.txt").write_text(f"[{group}]\n{entry}\n", encoding="utf-8")
        path = os.pathsep.join([str(site), *sys.path])

        def run(*arguments: str | Path) -> subprocess.CompletedProcess:
            command = [sys.executable, "-m", "vistok", *map(str, arguments)]
            environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
            return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)

        return run

    return installed
