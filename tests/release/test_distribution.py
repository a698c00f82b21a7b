"""What a release is made of: small enough for a package index, typed, and told the same version everywhere."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml

import vistok
from vistok.zoo import WEIGHTS

ROOT = Path(__file__).parents[2]
LIMIT = 100 * 2**20  # of a package index


def test_the_weights_leave_room_in_a_wheel():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < LIMIT - 4 * 2**20


def test_versions_agree():
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"$', project, re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert vistok.__version__ == version == citation["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_annotations_are_part_of_the_package():
    assert (Path(vistok.__file__).parent / "py.typed").exists()


@pytest.mark.slow(reason="builds a wheel of some 90 MB")
def test_a_wheel_is_small_enough_and_whole(tmp_path):
    build = pytest.importorskip("setuptools.build_meta", reason="pip install setuptools")

    source = tmp_path / "source"
    shutil.copytree(ROOT / "vistok", source / "vistok", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source / name)
    before = Path.cwd()
    os.chdir(source)
    try:
        wheel = tmp_path / build.build_wheel(str(tmp_path))
    finally:
        os.chdir(before)
    assert wheel.stat().st_size < LIMIT
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {path.relative_to(ROOT).as_posix() for path in WEIGHTS.rglob("*.safetensors")}
    assert {"vistok/py.typed", "vistok/studio/studio.css", *expected} <= names
    assert not any(name.startswith(("tests/", "docs/")) for name in names)
