"""The ``one-d-piece`` task: how many tokens it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.tiny import tiny
from vistok.errors import VistokError
from vistok.train.tasks import build_task
from vistok.train.tasks.one_d_piece import OneDPieceTask, contrast_weights


def keeping(often: int) -> OneDPieceTask:
    recipe = tiny("one-d-piece-mini")
    return build_task(
        replace(recipe, init={"tokenizer": "one-d-piece-mini"}, model={}, data=recipe.data | {"often": often})
    )


def test_every_second_draw_keeps_what_a_generator_draws(monkeypatch):
    task = keeping(64)
    monkeypatch.setattr(task, "draw_pictures", lambda *_: None)
    kept = [int(task.batch(step, slice(0, 4))["keep"]) for step in range(200)]
    assert 70 < kept.count(64) < 130
    assert len(set(kept)) > 50


def test_more_tokens_than_there_are_cannot_be_kept_often():
    with pytest.raises(VistokError, match="257"):
        keeping(257)


def test_errors_count_more_where_a_picture_has_contrast():
    images = torch.zeros(2, 3, 16, 16)
    images[0, :, 4:8, 4:6] = 1.0
    weights = contrast_weights(images)
    assert weights.shape == (2, 1, 16, 16)
    assert weights.mean().item() == pytest.approx(1, rel=1e-5)
    assert (weights[0, 0, 4:8, 4:8] > 10 * weights[1, 0, 0, 0]).all()
    assert (weights[1] == weights[1, 0, 0, 0]).all()
