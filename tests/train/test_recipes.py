"""Every recipe of the repository trains three steps, and its losses are what they were when they were written down."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.train.tiny import CASES, figures, texts, tiny
from vistok.train.tasks import text

WRITTEN_DOWN = json.loads((Path(__file__).parent / "recipe_figures.json").read_text())
QUICK = {
    "captions-mini",
    "llamagen-flextok-mini",
    "llava-mini",
    "scenes-features",
    "tokenpacker-mini",
}
SLOW = pytest.mark.slow(reason="all recipes together take two minutes")


@pytest.mark.parametrize("case", [case if case in QUICK else pytest.param(case, marks=SLOW) for case in CASES])
def test_the_losses_of_a_recipe_stay(case, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "documents", texts)
    found, expected = figures(tiny(case), tmp_path), WRITTEN_DOWN[case]
    # Muon works in bfloat16, so other processors part slowly from the first step on.
    assert found["loss"][0] == pytest.approx(expected["loss"][0], rel=1e-4)
    assert found["loss"] == pytest.approx(expected["loss"], rel=5e-3)
    assert expected["held_out"].keys() == found["held_out"].keys()
    for name, value in expected["held_out"].items():
        if "loss" in name or name.startswith("psnr"):
            assert found["held_out"][name] == pytest.approx(value, rel=5e-3), name
