"""The packages that CONTRIBUTING.md shows are installed as they stand there, and its commands run with them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from tests.test_layers import ROOT

GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


class Example(NamedTuple):
    """A section of the guide that shows a package."""

    source: str
    groups: dict[str, str]  # entry-point group to its lines
    commands: list[str]


def read_examples() -> dict[str, Example]:
    """The sections with a module, its entry points and commands, by heading."""
    found = {}
    for section in GUIDE.split("\n## ")[1:]:
        blocks = dict(re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL))
        if "toml" in blocks:
            groups = dict(
                re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n(.*?)(?:\n\n|\Z)', blocks["toml"], re.DOTALL)
            )
            heading = section.partition("\n")[0]
            found[heading] = Example(blocks["python"], groups, blocks[""].strip().splitlines())
    return found


EXAMPLES = read_examples()


@pytest.fixture
def inputs(tmp_path):
    """The files that the commands name."""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photo.jpg")
    for folder, level in (("real", 100), ("generated", 150)):
        (tmp_path / folder).mkdir()
        for i in range(2):
            Image.new("RGB", (64, 64), (level, level + i, level)).save(tmp_path / folder / f"{i}.png")


def test_all_five_kinds_are_shown():
    groups = {group for example in EXAMPLES.values() for group in example.groups}
    kinds = ("samplers", "compressors", "tokenizers", "generators", "metrics")
    assert groups == {f"vistok.{kind}" for kind in kinds}
    assert all(f"`{group}`" in GUIDE.partition("\n## ")[0] for group in groups)


def test_the_places_that_the_table_names_exist():
    table = GUIDE.partition("\n## ")[0]
    named = {path for path in re.findall(r"`([\w/]+\.py)`", table) if not path.endswith("/x.py")}
    for path in named:
        assert (ROOT / path).exists() or (ROOT / "vistok" / path).exists(), path
    for folder in re.findall(r"`([\w/]+)/x\.py`", table):
        assert (ROOT / folder).is_dir() or (ROOT / "vistok" / folder).is_dir(), folder


@pytest.mark.parametrize("heading", EXAMPLES)
def test_the_package_of_a_section_works(install, inputs, tmp_path, heading):
    example = EXAMPLES[heading]
    (group, entries), *others = example.groups.items()
    lines = "\n".join([entries, *(f"[{other}]\n{more}" for other, more in others)]).replace('"', "")
    vistok = install(example.source, group, lines)
    for command in example.commands:
        program, *arguments = shlex.split(command)
        done = vistok(*arguments) if program == "vistok" else run(program, arguments, tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        if "--out" in arguments or "-o" in arguments:
            assert (tmp_path / arguments[-1]).stat().st_size > 0, command


def run(program: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess:
    """Another program than ``vistok``, which sees the package too."""
    path = os.pathsep.join([str(folder / "site"), *sys.path])
    command = [sys.executable if program == "python" else program, *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
