"""How well pictures follow controls: true pictures are right, others are not; figures are those of the definitions."""

from __future__ import annotations

import pytest
import torch

from tests.cli.test_cli import vistok as command
from vistok.data.scenes import SHAPES, render, sample_scenes, statements
from vistok.eval.control import edge_f1, holds, mean_iou, score
from vistok.eval.scene_detector import detect

SCENES = sample_scenes(12, 21)
SAID = statements(SCENES)


def test_true_pictures_follow_their_controls_and_those_of_other_scenes_do_not() -> None:
    pictures = render(SCENES, 64)
    right, wrong = score(SCENES, SAID, pictures), score(SCENES, SAID, pictures.roll(1, 0))
    assert right.edges.value > 0.97 and right.segmentation.value > 0.9 and right.caption.value > 0.9
    assert wrong.edges.value < 0.5 and wrong.segmentation.value < 0.4 and wrong.caption.value < 0.3
    for each in (right, wrong):
        for figure in (each.edges, each.segmentation, each.caption):
            assert figure.low <= figure.value <= figure.high


def test_an_empty_picture_follows_nothing() -> None:
    empty = score(SCENES, SAID, torch.zeros(len(SCENES), 3, 64, 64))
    assert empty.edges.value == 0 and empty.caption.value == 0
    assert empty.segmentation.value < 1 / len(SHAPES)  # the background alone


def test_figures_are_those_of_the_definition() -> None:
    asked, found = torch.zeros(1, 6, 6, dtype=torch.bool), torch.zeros(1, 6, 6, dtype=torch.bool)
    asked[0, 2, :], found[0, 3, :3] = True, True  # a pixel apart, and half as long
    assert edge_f1(asked, found, tolerance=0).value == 0
    recall = 4 / 6  # the fourth is a pixel from the end of the found ones
    assert edge_f1(asked, found).value == pytest.approx(2 * recall / (1 + recall))
    classes, drawn = torch.full((1, 2, 2), -1), torch.full((1, 2, 2), -1)
    classes[0, 0], drawn[0, 0, 0] = 1, 1  # half of a class of two pixels; class 0 is nowhere
    assert mean_iou(classes, drawn, 2).value == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_captions_hold_of_their_own_scenes() -> None:
    objects = detect(render(SCENES, 64), 0.6)
    assert all(map(holds, SAID, objects))
    assert not holds(SAID[0], []) and not holds(SAID[0], [*objects[0], objects[0][0]])


def test_an_impossible_strength_is_told_before_anything_is_drawn(monkeypatch) -> None:
    monkeypatch.setattr("vistok.pipelines.Pipeline.__call__", lambda *_, **__: pytest.fail("it drew"))
    done = command("eval", "control", "--num", "1", "--strength", "1", "--strength", "-1")
    assert done.returncode == 2 and "strength" in done.stderr


def test_a_model_that_follows_no_controls_is_told_with_a_mend_that_there_is() -> None:
    done = command("eval", "control", "--num", "1", "--model", "llamagen")
    assert done.returncode == 2 and "name a ControlAR" in done.stderr and "--control" not in done.stderr
