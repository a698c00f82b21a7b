"""The detector is exact on what the world itself paints, at both sizes."""

from collections import Counter

import pytest
import torch

from vistok.data.scenes import COLOURS, SHAPES, SIZES, boxes, render, sample_scenes
from vistok.eval.scene_detector import detect


def _truth(scenes):
    columns = (scenes.shape.tolist(), scenes.colour.tolist(), scenes.size.tolist(), scenes.present.tolist())
    return [
        Counter((SHAPES[a], COLOURS[b], SIZES[c]) for a, b, c, here in zip(*row, strict=True) if here)
        for row in zip(*columns, strict=True)
    ]


@pytest.mark.parametrize("side", [64, 128])
def test_ground_truth_is_found(side):
    scenes = sample_scenes(500, 21)
    found = [Counter((d.shape, d.colour, d.size) for d in objects) for objects in detect(render(scenes, side))]
    right = sum(a == b for a, b in zip(found, _truth(scenes), strict=True))
    assert right / len(scenes) >= 0.99


def test_boxes_fit():
    scenes = sample_scenes(100, 22)
    for objects, true in zip(detect(render(scenes, 64)), boxes(scenes, 64), strict=True):
        for d in objects:
            assert (torch.tensor(d.box) - true).abs().amax(1).min() <= 1.5


def test_bytes_and_floats_agree():
    images = render(sample_scenes(20, 23), 64)
    as_bytes = ((images + 1) * 127.5).round().to(torch.uint8)
    seen, again = ([[(d.shape, d.colour, d.size) for d in found] for found in detect(x)] for x in (images, as_bytes))
    assert seen == again


def test_malformed_objects_score_low_and_empty_pictures_hold_nothing():
    images = render(sample_scenes(40, 24), 64)
    noisy = (images + 0.6 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    clean = [d.score for objects in detect(images) for d in objects]
    torn = [d.score for objects in detect(noisy) for d in objects]
    assert min(clean) > 0.75
    assert sum(torn) / max(1, len(torn)) < 0.7
    assert detect(torch.zeros(2, 3, 64, 64)) == [[], []]
