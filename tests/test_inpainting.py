"""Painting around what is known: every family that draws in any order keeps it, and no other pretends to."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

import vistok
from tests.cli.test_cli import vistok as command
from tests.test_families import QUICK, TOKENIZER, build, fails
from vistok.data.images import to_pil, to_tensor
from vistok.data.scenes import render, sample_scenes
from vistok.errors import VistokError

FILLING = {  # samplers, the first with few steps
    "xar": (QUICK["xar"], "xar:num_steps=3:solver=euler"),
    "enat": (QUICK["enat"], "masked:steps=3:order=random"),
    "maskgit": (QUICK["maskgit"], "masked:steps=3:schedule=linear"),
    "mar": ("mar:iterations=3:head_steps=3", "mar:iterations=70:head_steps=2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("inpainting")
    for family in ("xar", "enat", "maskgit", "controlar"):
        build(family).save_pretrained(root / family)
    to_pil(render(sample_scenes(1, 3), 64))[0].save(root / "scene.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (10, 20, 40, 64))  # cuts through cells and tokens
    mask.save(root / "mask.png")
    Image.new("L", (64, 64)).save(root / "black.png")
    Image.new("L", (64, 64), 255).save(root / "white.png")
    Image.new("L", (32, 64), 255).save(root / "narrow.png")
    return root


def load(folder, family) -> vistok.pipelines.Pipeline:
    if family == "mar":
        return vistok.pipeline("mar")
    return vistok.pipeline(family, checkpoint=folder / family, tokenizer=TOKENIZER[family])


@pytest.mark.parametrize(("family", "sampler"), [(f, s) for f, both in FILLING.items() for s in both])
def test_known_tokens_stay_and_the_others_follow_from_the_seed(folder, family, sampler):
    pipe = load(folder, family).with_image(folder / "scene.png", folder / "mask.png")
    encoded = pipe.tokenizer.encode(to_tensor(Image.open(folder / "scene.png"))[None])
    own = pipe.model.own_tokens(encoded)
    torch.testing.assert_close(pipe.model.image_tokens(own), encoded)  # they are each other's inverse
    stays = pipe.known.mask
    assert 0 < int(stays.sum()) < len(stays)
    options = {"sampler": sampler, "params": pipe.sampling_params(guidance=2.0)}
    together = pipe([1, 2, 3], seed=4, **options)
    assert torch.equal(together.tokens[:, stays], own[:, stays].expand_as(together.tokens[:, stays]))
    assert not torch.equal(together.tokens[0], together.tokens[1])
    assert (together.stats.step_of[:, stays] == 0).all() and (together.stats.step_of[:, ~stays] > 0).all()
    alone = pipe([1, 2, 3], seed=4, batch_size=1, **options)
    if family == "mar":  # whose few steps of the head enlarge the rounding of batches
        torch.testing.assert_close(alone.tokens, together.tokens, atol=0.05, rtol=0)
    else:
        assert [image.tobytes() for image in alone.images] == [image.tobytes() for image in together.images]


@pytest.mark.parametrize("family", FILLING)
def test_a_white_mask_draws_what_nothing_known_draws(folder, family):
    pipe, sampler = load(folder, family), FILLING[family][0]
    around = pipe.with_image(folder / "scene.png", folder / "white.png")
    assert torch.equal(around(2, sampler=sampler, seed=1).tokens, pipe(2, sampler=sampler, seed=1).tokens)


def sample(folder, family, out, *more) -> object:
    model = ("--checkpoint", folder / family, "--tokenizer", TOKENIZER[family]) if family in TOKENIZER else ()
    sampler = ("--sampler", FILLING[family][0]) if family in FILLING else ()
    return command(*map(str, ("sample", "--model", family, *model, *sampler, "--class", "2", "--out", out, *more)))


@pytest.mark.parametrize("family", FILLING)
def test_the_command_paints_a_part_anew_and_another_part_is_another_job(folder, tmp_path, family):
    given = ("--image", folder / "scene.png", "--mask", folder / "mask.png")
    done = sample(folder, family, tmp_path / "job", *given, "--json", "--trace", tmp_path / "trace.png")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pictures"] == 1 and (tmp_path / "trace.png").exists()
    other = ("--image", folder / "scene.png", "--mask", folder / "white.png")
    fails(sample(folder, family, tmp_path / "job", *other), "job")


@pytest.mark.parametrize(
    ("family", "image", "mask", "said"),
    [
        ("maskgit", "scene.png", "black.png", ("mask", "white")),
        ("maskgit", "narrow.png", "mask.png", ("picture", "32x64", "64x64")),
        ("maskgit", "scene.png", "narrow.png", ("mask", "32x64", "64x64")),
        ("maskgit", "none.png", "mask.png", ("none.png",)),
        ("controlar", "scene.png", "mask.png", ("one order", "--image")),
    ],
)
def test_what_cannot_be_painted_is_told(folder, tmp_path, family, image, mask, said):
    fails(sample(folder, family, tmp_path / "x.png", "--image", folder / image, "--mask", folder / mask), *said)


def test_image_and_mask_belong_together(folder, tmp_path):
    fails(sample(folder, "maskgit", tmp_path / "x.png", "--image", folder / "scene.png"), "--mask")
    fails(sample(folder, "maskgit", tmp_path / "x.png", "--mask", folder / "mask.png"), "--image")


def test_more_steps_than_hidden_codes_and_a_sampler_of_whole_images_are_refused(folder):
    pipe = load(folder, "maskgit").with_image(folder / "scene.png", folder / "mask.png")
    with pytest.raises(VistokError, match="codes"):
        pipe(1, sampler=f"masked:steps={pipe.known.hidden + 1}")
    mar = load(folder, "mar").with_image(folder / "scene.png", folder / "mask.png")
    with pytest.raises(VistokError, match="whole images"):
        mar(1, sampler="cspd:drafter=mar-mini-draft")
