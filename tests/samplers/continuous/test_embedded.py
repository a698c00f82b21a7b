"""The embedded MAR, its autoencoder and its draft, end to end."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import vistok
from tests.colours import main_colour
from vistok.cli.main import app
from vistok.data.scenes import COLOURS, SHAPES, render, sample_scenes
from vistok.errors import VistokError
from vistok.eval.decoding.objects import shows
from vistok.samplers import SamplingParams
from vistok.samplers.continuous import MaskedAutoregressive
from vistok.tokenizers.load import load_tokenizer

CLASSES = [
    SHAPES.index(shape) * len(COLOURS) + colour for shape, colour in (("circle", 0), ("cross", 3), ("square", 5))
]


def test_the_colour_of_the_class_is_painted():
    pipe = vistok.pipeline("mar")
    sampler = MaskedAutoregressive(iterations=32, head_steps=10, solver="dpm++")
    out = pipe(CLASSES, sampler=sampler, params=SamplingParams(guidance=3.0), seed=0)
    assert [main_colour(image) for image in out.images] == [label % len(COLOURS) for label in CLASSES]


def test_the_model_s_own_settings_paint_the_object_of_the_class():
    pipe = vistok.pipeline("mar")
    labels = list(range(0, 48, 4))
    images = pipe(labels, seed=3, batch_size=len(labels)).images
    assert sum(shows(image, label) for image, label in zip(images, labels, strict=True)) >= 9


def test_an_option_replaces_the_model_s_own():
    pipe = vistok.pipeline("mar")
    assert pipe.sampler() == MaskedAutoregressive(**pipe.sampling)
    assert pipe.sampler("mar:head_steps=7").head_steps == 7
    assert pipe.sampler("cspd:spacing=even").spacing == "even"
    with pytest.raises(VistokError, match=r"spacing of the head's steps 'odd'"):
        pipe(0, sampler="mar:spacing=odd")


def test_the_autoencoder_gives_scenes_back():
    kl = load_tokenizer("kl-mini").tokenizer
    images = render(sample_scenes(16, seed=5), 64)
    error = (kl.decode(kl.encode(images)).clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
    assert -10 * error.log10().mean() > 26


@pytest.mark.parametrize("mode", ["exact", "reference"])
def test_the_draft_serves_the_command(tmp_path, mode):
    out = tmp_path / "cross.png"
    args = [
        "sample",
        "--model",
        "mar",
        "--class",
        "27",
        "--sampler",
        "cspd",
        "--draft",
        "mar-mini-draft",
        "--mode",
        mode,
    ]
    args += [
        "--iterations",
        "8",
        "--head-steps",
        "10",
        "--window",
        "2",
        "--prefill",
        "0.5",
        "--inner-temperature",
        "10",
        "--out",
        str(out),
        "--json",
    ]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert out.exists()
    assert json.loads(result.stdout)["pictures"] == 1
