"""Runs every golden case through the adapter of its system and kind.

Cases are found under ``../shared/golden`` beside the repository, or in the folder named by ``VISTOK_GOLDEN``; where
there is none, the tests are skipped, but on CI they fail. Adapters are the modules of ``tests/golden/adapters``; a case
without one is skipped, and counted at the end of the run (``tests/conftest.py``).
"""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.golden import adapters
from tests.golden.case import CENSUS, Case

DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden"


def find_cases() -> list:
    named = os.environ.get("VISTOK_GOLDEN")
    folder = Path(named) if named else DEFAULT_FOLDER
    paths = sorted(folder.rglob("*.json"))
    if not paths and named:
        raise pytest.UsageError(f"VISTOK_GOLDEN names '{named}', which holds no golden case")
    if not paths and os.environ.get("CI"):
        raise pytest.UsageError(f"CI must not pass without the golden cases: '{folder}' is absent")
    if not paths:
        reason = f"no golden cases: '{folder}' is absent (set VISTOK_GOLDEN to the folder that holds them)"
        return [pytest.param(None, id="no-cases", marks=pytest.mark.skip(reason=reason))]
    return [pytest.param(path, id=Case(path).id) for path in paths]


@functools.cache
def load_adapters() -> tuple[dict[str, dict[str, Callable[[Case], None]]], dict[str, Exception]]:
    """Adapters by system and kind, and the modules that failed to import (they fail their own system)."""
    found: dict[str, dict[str, Callable[[Case], None]]] = {}
    broken: dict[str, Exception] = {}
    for info in pkgutil.iter_modules(adapters.__path__, adapters.__name__ + "."):
        try:
            module = importlib.import_module(info.name)
        except Exception as error:
            broken[info.name.rpartition(".")[2]] = error
        else:
            found.setdefault(module.SYSTEM, {}).update(module.ADAPTERS)
    return found, broken


@pytest.mark.parametrize("path", find_cases())
def test_golden(path: Path, record_property: Callable[[str, object], None]) -> None:
    case = Case(path)
    record_property(CENSUS, [case.system, case.kind])
    found, broken = load_adapters()
    if case.system in broken:
        raise broken[case.system]
    if case.system not in found:
        pytest.skip(f"no adapter for system '{case.system}' (kind '{case.kind}')")
    if case.kind not in found[case.system]:
        pytest.skip(f"no adapter for kind '{case.kind}' of system '{case.system}'")
    found[case.system][case.kind](case)
    assert not case.outputs.unused, f"outputs that the adapter never compared: {sorted(case.outputs.unused)}"
