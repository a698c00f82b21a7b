"""The comparison must accept what is within tolerance and nothing else."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.golden.case import Case, compare


@pytest.fixture
def case(tmp_path) -> Case:
    meta = {"system": "s", "kind": "k", "case": "c", "config": {"n": 2}, "atol": 1e-3, "rtol": 0.0}
    (tmp_path / "c.json").write_text(json.dumps(meta))
    tensors = {
        "weights.a.b": torch.ones(2),
        "in.x": torch.zeros(3),
        "out.y": torch.tensor([1.0, 2.0, float("-inf"), float("nan")]),
        "out.ids": torch.tensor([3, 4]),
    }
    save_file(tensors, tmp_path / "c.safetensors")
    return Case(tmp_path / "c.json")


def test_prefixes_are_split_off(case):
    assert case.id == "s/c"
    assert list(case.weights) == ["a.b"]
    assert list(case.inputs) == ["x"]
    assert set(case.outputs.unused) == {"y", "ids"}


def test_close_accepts_values_within_tolerance_and_marks_them_used(case):
    case.close(case.outputs["y"].double() + 5e-4, "y")
    case.close([3, 4], "ids")
    assert not case.outputs.unused


@pytest.mark.parametrize(
    ("actual", "name"),
    [
        ([1.01, 2.0, float("-inf"), float("nan")], "y"),
        ([1.0, 2.0, 0.0, float("nan")], "y"),
        ([1.0, 2.0, float("-inf"), 0.0], "y"),
        ([1.0, 2.0, float("-inf")], "y"),
        ([3, 5], "ids"),
        ([3.0005, 4.0], "ids"),
    ],
)
def test_close_rejects(case, actual, name):
    with pytest.raises(AssertionError, match=name):
        case.close(torch.tensor(actual), name)


def test_equal_ignores_the_tolerance(case):
    with pytest.raises(AssertionError, match="atol=0"):
        case.equal(case.outputs["y"] + 5e-4, "y")


def test_the_message_names_the_worst_element():
    with pytest.raises(AssertionError, match=r"1 of 4 values differ .* worst at \[1, 0\]: got 7, expected 2"):
        compare(torch.tensor([[0, 1], [7, 3]]), torch.tensor([[0, 1], [2, 3]]), "z", 0.0, 0.0)


def test_scalars_compare():
    compare(1.5, torch.tensor(1.5), "loss", 0.0, 0.0)
    with pytest.raises(AssertionError, match=r"worst at \[\]"):
        compare(1.5, torch.tensor(1.25), "loss", 0.0, 0.0)
