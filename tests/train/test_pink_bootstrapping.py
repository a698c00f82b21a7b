"""benchmarks/pink_bootstrapping.py: what each arm is shown."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.train.tiny import tiny
from vistok.data.scenes import render

pytest.importorskip("peft")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "pink_bootstrapping.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("pink_bootstrapping", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_half_of_the_boxes_have_expressions_and_the_rest_are_withheld(bench):
    everything = bench.annotate(bench.different(40, 5))
    half, withheld = bench.halves(everything)
    for whole, told, kept_back in zip(everything, half, withheld, strict=True):
        assert sorted(told + kept_back) == sorted(whole) and abs(len(told) - len(kept_back)) <= 1
        assert all(entry.expressions for entry in whole)
    assert abs(sum(map(len, half)) - sum(map(len, withheld))) <= 0.2 * sum(map(len, everything))


def test_training_is_shown_the_boxes_of_its_pool_alone(bench):
    scenes = bench.different(8, 5)
    half, withheld = bench.halves(bench.annotate(scenes))
    task = bench.PooledPink(tiny("pink-mini"), render(scenes, bench.SIDE), half)
    places = {tuple(round(value, 2) for value in entry.box) for row in half for entry in row}
    hidden = {tuple(round(value, 2) for value in entry.box) for row in withheld for entry in row} - places
    shown = set()
    for step in range(20):
        batch = task.batch(step, slice(0, 4))
        told = batch["boxes"][batch["boxes"].isfinite().all(-1)]
        shown |= {tuple(round(value, 2) for value in box) for box in told.tolist()}
        assert torch.equal(batch["questions"][1:3], task.batch(step, slice(1, 3))["questions"])
    assert shown == places and hidden
