"""What counts as a right picture where generators are asked for one object."""

from __future__ import annotations

from vistok.data.images import to_pil
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import single_object_scenes
from vistok.eval.decoding.objects import shows


def test_one_object_of_the_class_is_right_and_nothing_else() -> None:
    scenes = single_object_scenes(11, 0)[:12]
    for image, label in zip(to_pil(render(scenes, 64)), scenes.label.tolist(), strict=True):
        assert shows(image, label)
        assert not shows(image, (label + 1) % 48)
    many = sample_scenes(40, 11)
    many = many[many.present.sum(1) > 1][:6]
    for image, label in zip(to_pil(render(many, 64)), many.label.tolist(), strict=True):
        assert not shows(image, label)
