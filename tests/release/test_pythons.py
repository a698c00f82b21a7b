"""The package is written in the Python that it promises."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLDEST = (3, 10)


def test_the_oldest_python_is_the_one_that_is_promised():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'requires-python = ">={OLDEST[0]}.{OLDEST[1]},' in project
    assert f'target-version = "py{OLDEST[0]}{OLDEST[1]}"' in project


@pytest.mark.parametrize("folder", ["vistok", "benchmarks"])
def test_every_file_is_in_the_grammar_of_the_oldest_python(folder):
    for path in (ROOT / folder).rglob("*.py"):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=OLDEST)


# Names of the standard library that came after the oldest Python; what 3.10 lacks must not be imported outright.
NEWER = {
    "tomllib": None,
    "typing": {"Self", "Never", "assert_never", "assert_type", "LiteralString", "Unpack", "override", "TypeVarTuple"},
    "itertools": {"batched"},
    "enum": {"StrEnum"},
    "datetime": {"UTC"},
    "contextlib": {"chdir"},
    "hashlib": {"file_digest"},
}


def test_no_file_imports_what_the_oldest_python_lacks():
    found = []
    for path in (ROOT / "vistok").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found += [(path.name, name.name) for name in node.names if NEWER.get(name.name, "known") is None]
            elif isinstance(node, ast.ImportFrom) and node.module in NEWER:
                newer = NEWER[node.module]
                found += [(path.name, name.name) for name in node.names if newer is None or name.name in newer]
        found += [
            (path.name, name)
            for name in re.findall(r"\bitertools\.batched\b|\bExceptionGroup\b|\bhashlib\.file_digest\b", text)
        ]
    assert found == []
