"""``vistok ground``: what it prints, writes and refuses."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from vistok.cli.main import app, main
from vistok.projectors.grounding import interface
from vistok.projectors.grounding.interface import Grounding, Region
from vistok.projectors.grounding.points import Points


class Finds:
    """Stands for a model: finds what it is told, in any picture."""

    def __init__(self, *regions, answer="<SEG>"):
        self.found = Grounding(answer, regions)

    def ground(self, picture, text):
        return self.found


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene.png"
    Image.new("RGB", (80, 60), (90, 90, 90)).save(path)
    return path


def masked():
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[10:30, 20:50] = True
    return Region(mask=mask, points=Points(torch.tensor([[25.0, 15], [70, 50]]), torch.tensor([1, 0])))


def run(monkeypatch, grounder, *words):
    monkeypatch.setattr(interface, "load_grounder", lambda name, device: grounder)
    monkeypatch.setattr("sys.argv", ["vistok", "ground", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_mask_points_and_picture_are_written(picture, tmp_path, monkeypatch, capsys):
    out, mask = tmp_path / "found.png", tmp_path / "mask.png"
    words = ("--image", picture, "--text", "the circle", "--model", "mine", "--out", out, "--mask", mask, "--json")
    assert run(monkeypatch, Finds(masked()), *words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["answer"] == "<SEG>"
    (region,) = told["regions"]
    assert region["box"] == [20, 10, 50, 30] and region["area"] == pytest.approx(600 / 4800)
    assert region["points"] == [[25, 15, "positive"], [70, 50, "negative"]]
    assert Image.open(mask).size == (80, 60) and Image.open(mask).getpixel((30, 20)) == (255, 255, 255)
    assert min(Image.open(out).size) >= 360


@pytest.mark.parametrize(
    ("grounder", "words", "culprits"),
    [
        (Finds(answer="no"), [], ["'no'", "the circle", "points at nothing"]),
        (Finds(Region(box=(1, 1, 5, 5)), answer="[0.1]"), ["--mask", "m.png"], ["--mask", "READ"]),
        (Finds(masked()), ["--sam", "facebook/sam-vit-base"], ["--sam", "leave it out"]),
        (Finds(masked()), ["--out", "found.xyz"], ["found.xyz"]),
    ],
)
def test_what_cannot_be_done_is_one_sentence(grounder, words, culprits, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = run(monkeypatch, grounder, "--image", picture, "--text", "the circle", "--model", "mine", *words)
    told = capsys.readouterr().err
    assert code == 2 and told.count("\n") == 1 and all(culprit in told for culprit in culprits), told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scene.png"]


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--image", "none.png", "--text", "the circle", "--model", "mine"], "none.png"),
        (["--image", "scene.png", "--text", " ", "--model", "mine"], "no text"),
        (["--image", "scene.png", "--text", "the circle", "--model", "llava-mini"], "extension.json"),
    ],
)
def test_a_mistake_in_the_words_is_told_before_any_work(words, culprit, picture, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["vistok", "ground", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and culprit in capsys.readouterr().err


def test_the_command_is_listed():
    assert "ground" in {command.name or command.callback.__name__ for command in app.registered_commands}
