"""The plugin under the real lmms-eval, as a user types the command; skipped where that is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.projectors import folders
from vistok.cli.eval import app
from vistok.eval.harnesses.lmms.tasks import TASK, write_scenes_task

pytestmark = [
    pytest.mark.slow,  # each starts lmms-eval, which takes its time to import
    pytest.mark.skipif(find_spec("lmms_eval") is None, reason="lmms-eval is not installed"),
]


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return write_scenes_task(tmp_path_factory.mktemp("task"), side=64, scenes=4, per_scene=3)


def evaluated(tmp_path: Path, questions: Path, model: str, arguments: str) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-m", "lmms_eval", "--model", model, "--model_args", arguments, "--tasks", TASK]
    command += ["--include_path", str(questions.parent), "--batch_size", "1", "--output_path", str(tmp_path / "out")]
    plugin = {"LMMS_EVAL_PLUGINS": "vistok.eval.harnesses.lmms", "PYTHONPATH": path}
    return subprocess.run(command, env=os.environ | offline | plugin, capture_output=True, text=True, check=False)


def accuracy(tmp_path: Path) -> float:
    (report,) = (tmp_path / "out").rglob("*results.json")
    return json.loads(report.read_text())["results"][TASK]["accuracy,none"]


def test_the_accuracy_is_that_of_vistoks_own_evaluation(tmp_path, questions):
    run = evaluated(tmp_path, questions, "vistok_llava_hf", "pretrained=llava-mini,keep=25%")
    assert run.returncode == 0, run.stderr[-2000:]
    points = tmp_path / "points.json"
    own = ["vqa", "--model", "llava-mini", "--questions", str(questions), "--scorer", "exact"]
    own += ["--methods", "vtc-cls", "--keep", "25", "--max-new-tokens", "2", "--json", str(points)]
    assert CliRunner().invoke(app, own).exit_code == 0
    (mine,) = [point["accuracy"] for point in json.loads(points.read_text()) if point["method"] == "vtc-cls"]
    assert accuracy(tmp_path) == pytest.approx(mine)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("keep=1000", "1000 tokens of 64"),
        ("method=vtccls", "did you mean"),
        ("method=correlation,keep=9", "leave keep"),
    ],
)
def test_what_is_refused_ends_the_run(tmp_path, questions, arguments, told):
    run = evaluated(tmp_path, questions, "vistok_llava_hf", f"pretrained=llava-mini,{arguments}")
    assert run.returncode != 0
    assert told in run.stderr
    assert not list(tmp_path.rglob("*results.json"))


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_qwen_runs(tmp_path, questions, name):
    folder = folders.save(name, tmp_path / "model")
    arguments = f"pretrained={folder},method=divprune,keep=25%,min_pixels=256,max_pixels=1024"
    run = evaluated(tmp_path, questions, f"vistok_{name}", arguments)
    assert run.returncode == 0, run.stderr[-2000:]
    assert 0 <= accuracy(tmp_path) <= 1
