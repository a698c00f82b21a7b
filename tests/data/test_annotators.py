"""Edges of ordinary pictures, for ControlAR."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from PIL import Image

from vistok.cli.main import main
from vistok.data.annotators import canny
from vistok.data.images import to_pil
from vistok.data.scenes import render, sample_scenes
from vistok.errors import VistokError


def test_edges_are_those_of_opencv_and_lie_around_what_is_seen() -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    image = Image.new("RGB", (40, 30), "black")
    image.paste((255, 255, 255), (10, 10, 20, 20))
    edges = np.asarray(canny(image))
    assert edges.shape == (30, 40, 3) and set(np.unique(edges)) == {0, 255}
    rows, columns = edges[..., 0].nonzero()
    assert rows.min() >= 8 and rows.max() <= 21 and columns.min() >= 8 and columns.max() <= 21
    scene = to_pil(render(sample_scenes(1, 3), 64))[0]
    assert np.array_equal(np.asarray(canny(scene))[..., 0], cv2.Canny(np.array(scene), 100, 200))
    assert np.asarray(canny(scene, 10, 20)).sum() > np.asarray(canny(scene)).sum()
    deep = Image.fromarray(np.asarray(scene.convert("L")).astype(np.uint16) * 257)
    assert np.array_equal(np.asarray(canny(deep)), np.asarray(canny(scene.convert("L"))))


def test_without_opencv_the_sentence_says_what_to_install(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    image = tmp_path / "scene.png"
    Image.new("RGB", (8, 8)).save(image)
    with pytest.raises(VistokError, match="opencv-python-headless"):
        canny(Image.open(image))
    with pytest.raises(VistokError, match="thresholds"):
        canny(Image.open(image), 5, 4)
    monkeypatch.setattr(sys, "argv", ["vistok", "data", "control", str(image), "--out", str(tmp_path / "x.png")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and not (tmp_path / "x.png").exists()
    assert "opencv-python-headless" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(importlib.util.find_spec("cv2") is None, reason="needs opencv-python-headless")
def test_the_command_writes_a_picture(monkeypatch, tmp_path) -> None:
    image, out = tmp_path / "scene.png", tmp_path / "edges.png"
    to_pil(render(sample_scenes(1, 3), 64))[0].save(image)
    monkeypatch.setattr(sys, "argv", ["vistok", "data", "control", str(image), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and Image.open(out).size == (64, 64)
