"""The runner under the real lm-eval, as a user types the command; skipped where that is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,  # each starts lm-eval, which takes its time to import
    pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm-eval is not installed"),
]

TASK = """task: continued
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{target}}}}"
generation_kwargs:
  max_gen_toks: 24
  until: ["zzz"]
  do_sample: false
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
TEXTS = ["def read(self, path):", "import os\nimport sys\n", "for name in names:\n    print("]


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    lines = [json.dumps({"text": text, "target": ""}) for text in TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (folder / "continued.yaml").write_text(TASK.format(file=folder / "texts.jsonl"), encoding="utf-8")
    return folder


def evaluated(out: Path, task: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    offline = {"HF_HOME": str(out / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    command = [sys.executable, "-m", "vistok.eval.harnesses.lm", "--model", "vistok_hf", "--model_args", arguments]
    command += ["--tasks", "continued", "--include_path", str(task), "--device", "cpu", "--batch_size", "2"]
    command += ["--output_path", str(out / "out"), "--log_samples"]
    environment = os.environ | offline | {"PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def answers(out: Path) -> list[str]:
    (file,) = (out / "out").rglob("samples_continued_*.jsonl")
    rows = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda row: row["doc_id"])
    return [row["resps"][0][0] for row in rows]


def test_answers_are_those_of_plain_decoding(tmp_path, task):
    """Greedy, in batches of two, with limits and stop words as lm-eval sets them."""
    found = {}
    for drafter in ("none", "recycling", "lookup"):
        run = evaluated(tmp_path / drafter, task, f"pretrained=text-mini,drafter={drafter},dtype=float32")
        assert run.returncode == 0, run.stderr[-2000:]
        found[drafter] = answers(tmp_path / drafter)
    assert len(found["none"]) == len(TEXTS)
    assert any(found["none"])
    assert found["recycling"] == found["lookup"] == found["none"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("drafter=recyclin", "did you mean"),
        ("drafter=draft", "small model"),
        ("drafter=lookup,draft=text-mini-draft", "reads no --draft"),
    ],
)
def test_what_is_refused_ends_the_run_with_a_sentence(tmp_path, task, arguments, told):
    run = evaluated(tmp_path, task, f"pretrained=text-mini,{arguments}")
    assert run.returncode != 0
    assert told in run.stderr
    assert "Traceback" not in run.stderr
