"""Packages of other people: one module and its entry points, installed for the time of a test."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from vistok.cli.main import main
from vistok.registry import Registry

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Run]:
    """Installs a package as pip would, and returns ``vistok`` as a command that sees it.

    ``install(source, group, entry)`` writes the module ``toy`` with this source and an entry point such as
    ``"mine = toy:Mine"`` in the group; the command's arguments are those of ``vistok``. It runs in this process, which
    spares each command the imports, in the folder of the test. Another call puts another package in its place, or
    beside it if it is given a name as ``package``; the module is one.
    """

    def run(*arguments: str | Path) -> subprocess.CompletedProcess:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with monkeypatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["vistok", *map(str, arguments)])
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def installed(source: str, group: str, entry: str, package: str = "toy") -> Run:
        site = tmp_path / "site"
        information = site / f"{package}-1.0.dist-info"
        information.mkdir(parents=True, exist_ok=True)
        (site / "toy.py").write_text(source, encoding="utf-8")
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8"
        )
        (information / "entry_points.txt").write_text(f"[{group}]\n{entry}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(site)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a package that is installed anew is read anew
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, "toy", raising=False)
        monkeypatch.chdir(tmp_path)
        return run

    monkeypatch.setattr(Registry, "claims", property(Registry.claims.func))  # looked up anew each time
    yield installed
    sys.modules.pop("toy", None)
