"""``vistok bench context`` on a toy shape: every policy has its figures, and reads what it says."""

from __future__ import annotations

import json

import pytest

from tests.cli.test_cli import vistok
from vistok.eval.decoding.context import random_model, standard_policies, time_edit

SHAPE = ["--layers", "8", "--width", "32", "--heads", "4", "--kv-heads", "2", "--steps", "1", "--edit", "0"]


def test_every_policy_has_its_figures(tmp_path):
    file = tmp_path / "context.json"
    done = vistok("bench", "context", "--lengths", "3000", "--json", str(file), *SHAPE)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(file.read_text())["rows"]}
    assert list(rows) == [entry.name for entry in standard_policies(1024)]
    assert rows["SDPA"]["reads"] == pytest.approx(1, abs=0.01)
    assert all(0 < row["reads"] < 1 for name, row in rows.items() if name != "SDPA")
    assert all(row["kept"] < 0.5 for name, row in rows.items() if name in ("CCA", "StreamingLLM", "SnapKV"))


@pytest.mark.parametrize(
    "options", [["--lengths", "many"], ["--lengths", "0"], ["--policies", "Tydal"], ["--width", "65"]]
)
def test_what_is_wrong_is_said_in_a_sentence(options):
    done = vistok("bench", "context", *SHAPE, *options)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert options[1] in done.stderr or options[0] in done.stderr


def test_an_edit_may_bring_more_tokens_than_the_model_knows():
    anew, edited = time_edit(random_model(1, 32, 4, 2, 6000), 64, 4096 + 8, 1)
    assert anew.figures["run"] == 64 + 4096 + 8 and edited.figures["run"] >= 4096 + 8


def test_an_edit_runs_few_tokens():
    anew, edited = time_edit(random_model(2, 32, 4, 2, 300), 200, 8, 1)
    assert anew.figures["run"] == 208
    assert edited.figures["run"] == 9
    assert edited.figures["cost"] < 0.15
