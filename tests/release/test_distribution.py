"""What a release is made of: small enough for a package index, typed, and told the same version everywhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import vistok
from vistok.zoo import WEIGHTS

ROOT = Path(__file__).parents[2]
LIMIT = 100 * 10**6  # bytes, of a package index
FILES = [*(f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING")), "LICENSE", "CITATION.cff"]
FILES += ["pyproject.toml", "MANIFEST.in", "mkdocs.yml"]


def test_the_weights_leave_room_in_a_wheel():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < LIMIT - 5 * 10**6


def test_versions_agree():
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"$', project, re.M)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert vistok.__version__ == version == citation["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_annotations_are_part_of_the_package():
    assert (Path(vistok.__file__).parent / "py.typed").exists()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Names in the sdist and in the wheel; weights are built empty, which is quick, and sizes are those on the disk."""
    pytest.importorskip("setuptools", minversion="77", reason="pip install 'setuptools>=77'")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    paths = [ROOT / name for name in FILES]
    for folder in ("vistok", "docs", "recipes", "notebooks", "benchmarks", "tests/release"):
        paths += (path for path in (ROOT / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    for path in paths:
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.touch() if path.suffix == ".safetensors" else shutil.copy(path, copy)
    for kind in ("sdist", "wheel"):
        build = f"import sys, setuptools.build_meta as backend; backend.build_{kind}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", build, str(out)], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(out.glob("*.tar.gz"))) as sdist:
        names = {each.name.partition("/")[2] for each in sdist.getmembers() if each.isfile()}
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        return {"sdist": names, "wheel": set(wheel.namelist())}


@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_what_is_released_is_whole_and_small_enough(built, kind):
    names = built[kind]
    package = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vistok").rglob("*.py")}
    weights = {path.relative_to(ROOT).as_posix() for path in WEIGHTS.rglob("*") if path.is_file()}
    assert package | weights | {"vistok/py.typed", "vistok/studio/studio.css"} <= names
    assert sum((ROOT / name).stat().st_size for name in names if (ROOT / name).exists()) < LIMIT


def test_the_sdist_has_recipes_and_docs_and_no_tests(built):
    folders = {name.partition("/")[0] for name in built["sdist"] if "/" in name}
    assert folders == {"vistok", "docs", "recipes", "vistok.egg-info"}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} <= built["sdist"]


def test_the_wheel_has_the_package_alone(built):
    folders = {name.partition("/")[0] for name in built["wheel"]}
    assert folders == {"vistok", f"vistok-{vistok.__version__}.dist-info"}
