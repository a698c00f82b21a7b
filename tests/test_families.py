"""Families of generators end to end: a user's weights in, pictures out of the command line; seeds, jobs and mistakes.

The networks are tiny and untrained: what is tested is the way from a file to a picture, which no family may need a
special case for.
"""

from __future__ import annotations

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

import vistok
from tests.cli.test_cli import vistok as command
from tests.models.test_masked import KINDS as MASKED
from vistok.errors import VistokError
from vistok.models.controlar import ControlAR, ControlARConfig
from vistok.models.xar import XAR, XARConfig
from vistok.pipelines.resolve import resolve_generator
from vistok.samplers import parse_sampler

WIDTH = {"embed_dim": 16, "num_heads": 2}
TOKENIZER = {"xar": "kl-mini", "enat": "vq-mini", "maskgit": "vq-mini", "controlar": "vq-mini"}
QUICK = {"xar": "xar:num_steps=3", "enat": "masked:steps=3", "maskgit": "masked:steps=3", "controlar": "ar"}


def build(family: str, classes: int = 5) -> torch.nn.Module:
    torch.manual_seed(0)
    if family == "xar":
        model = XAR(XARConfig(64, 4, 1, 5, "cell:8", **WIDTH, encoder_depth=1, decoder_depth=1, class_num=classes))
    elif family == "controlar":
        shape = {"dim": 16, "n_layer": 3, "n_head": 2, "multiple_of": 8, "vocab_size": 512, "block_size": 256}
        encoder = {"adapter_width": 16, "adapter_depth": 1, "adapter_heads": 2, "adapter_image_size": 256}
        model = ControlAR(
            ControlARConfig(**shape, **encoder, num_classes=classes, downsample=4, controls=("canny", "depth"))
        )
    else:
        kind, config, depths = MASKED[family]
        model = kind(config(grid=16, codebook_size=512, num_classes=classes, **WIDTH, **depths))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for family in TOKENIZER:
        build(family).save_pretrained(root / family)
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).save(root / "edges.png")
    Image.new("L", (32, 64)).save(root / "narrow.png")
    return root


@pytest.fixture
def run(folders, tmp_path):
    def sample(family, *more, out="out.png"):
        arguments = ["sample", "--model", family, "--checkpoint", folders / family, "--class", "2"]
        if "--sampler" not in more:
            more = ("--sampler", QUICK[family], *more)
        if "--tokenizer" not in more:
            more = ("--tokenizer", TOKENIZER[family], *more)
        return command(*(str(each) for each in (*arguments, *more, "--out", tmp_path / out)))

    return sample


@pytest.mark.parametrize("family", TOKENIZER)
def test_a_seed_gives_the_same_pictures_in_any_batch_and_a_job_goes_on(run, tmp_path, family):
    for out, size in (("four", 4), ("one", 1)):
        done = run(family, "-n", 4, "--batch-size", size, "--seed", 5, "--cfg", 2, "--json", out=out)
        assert done.returncode == 0, done.stderr
    files = sorted((tmp_path / "four").glob("*.png"))
    pictures = [path.read_bytes() for path in files]
    assert len(set(pictures)) == 4
    assert pictures == [path.read_bytes() for path in sorted((tmp_path / "one").glob("*.png"))]
    files[2].unlink()
    again = run(family, "-n", 4, "--seed", 5, "--cfg", 2, "--json", out="four")
    assert json.loads(again.stdout)["pictures"] == 1 and files[2].read_bytes() == pictures[2]


@pytest.mark.parametrize("family", TOKENIZER)
def test_a_trace_shows_which_step_decided_what(run, tmp_path, family):
    done = run(family, "--trace", tmp_path / "trace.png")
    assert done.returncode == 0, done.stderr
    sheet = Image.open(tmp_path / "trace.png")
    assert sheet.width == 2 * sheet.height
    tones = len(sheet.crop((sheet.height, 0, *sheet.size)).getcolors())
    assert tones == {"xar": 4, "enat": 3, "maskgit": 3, "controlar": 1}[family]  # entities, steps, one token a step


@pytest.mark.parametrize("family", ["xar", "enat", "maskgit"])
def test_averaged_weights_of_a_training_checkpoint_and_pythons_call(folders, tmp_path, family):
    model = build(family)
    path = tmp_path / "checkpoint.pth"
    wrong = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    torch.save({"model": wrong, "model_ema": model.state_dict()}, path)
    kind, shape = type(model), model.config
    preset = next(iter(kind.presets))
    loaded = kind.from_pretrained(path, preset, prefer_ema=True, **{k: getattr(shape, k) for k in vars(shape)})
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    pipe = vistok.pipeline(family, checkpoint=folders / family, tokenizer=TOKENIZER[family])
    out = pipe(3, n=2, sampler=QUICK[family], seed=1)
    assert [image.size for image in out.images] == [(64, 64)] * 2 and out.tokens.shape[:2] == (2, 256)


def fails(done, *said):
    assert done.returncode == 2, done.stderr
    for each in said:
        assert each in " ".join(done.stderr.split()), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("family", "more", "said"),
    [
        ("xar", ("--sampler", "xar:num_steps=2"), ("num_steps", "3")),
        ("xar", ("--sampler", "masked"), ("xar",)),
        ("xar", ("--sampler", "xar:solver=heun"), ("euler",)),
        ("xar", ("--temperature", "0.5"), ("temperature",)),
        ("xar", ("--tokenizer", "vq-mini"), ("KLAutoencoder",)),
        ("enat", ("--tokenizer", "kl-mini"), ("--tokenizer",)),
        ("enat", ("--sampler", "masked:steps=300"), ("300", "256")),
        ("enat", ("--sampler", "ar"), ("masked",)),
        ("enat", ("--tokens", "5"), ("--tokens",)),
        ("enat", ("--size", "30"), ("--size 30", "4")),
        ("enat", ("--size", "32"), ("64",)),
        ("maskgit", ("--sampler", "masked:order=any"), ("random",)),
        ("maskgit", ("--class", "7"), ("classes 0 to 4",)),
        ("maskgit", ("--control", "edges.png"), ("--control", "ControlAR")),
        ("controlar", ("--control-kind", "canny"), ("--control edges.png",)),
        ("controlar", ("--control", "edges.png"), ("canny", "depth")),
        ("controlar", ("--control", "edges.png", "--control-kind", "cany"), ("canny",)),
        ("controlar", ("--control", "none.png", "--control-kind", "canny"), ("none.png",)),
        ("controlar", ("--control", "edges.png", "--control-kind", "canny", "--strength", "-1"), ("strength",)),
        (
            "controlar",
            ("--control", "edges.png", "--control-kind", "canny", "--control-kind", "depth"),
            ("one for each",),
        ),
    ],
)
def test_mistakes_are_named_with_their_mend(run, folders, family, more, said):
    more = [folders / each if each.endswith(".png") else each for each in more]
    fails(run(family, *more), *said)


@pytest.mark.parametrize(
    ("family", "mistake", "mended"),
    [
        ("xar", ("--temperature", "0.5"), ()),  # told by the pipeline
        ("enat", ("--sampler", "masked:steps=300"), ()),  # by the sampler, of the model
        ("maskgit", ("--sampler", "masked:steps=200"), ("--sampler", "masked:steps=3")),  # by the draw
    ],
)
def test_a_job_that_is_refused_leaves_its_folder_to_the_mended_one(run, folders, tmp_path, family, mistake, mended):
    half = Image.new("L", (64, 64))
    half.paste(255, (0, 0, 64, 32))
    half.save(tmp_path / "mask.png")
    around = ("--image", folders / "edges.png", "--mask", tmp_path / "mask.png") if family == "maskgit" else ()
    fails(run(family, *around, *mistake, out="job"), "vistok")
    assert not (tmp_path / "job").exists()
    assert run(family, *around, *mended, out="job").returncode == 0
    assert {path.name for path in (tmp_path / "job").iterdir()} == {"000000.png", "manifest.json", "metadata.jsonl"}


def test_an_unknown_entity_is_named(folders, tmp_path, run):
    (tmp_path / "strange").mkdir()
    for path in (folders / "xar").iterdir():
        text = path.read_bytes().replace(b'"cell:8"', b'"cel:8"')
        (tmp_path / "strange" / path.name).write_bytes(text)
    fails(run("xar", "--checkpoint", tmp_path / "strange"), "entity", "cell")


def test_a_control_picture_with_more_tokens_than_the_weights_know_is_refused(run, tmp_path):
    Image.new("RGB", (128, 64)).save(tmp_path / "wide.png")
    fails(run("controlar", "--control", tmp_path / "wide.png", "--control-kind", "canny"), "128x64", "256", "64x64")


def test_controls_of_two_sizes_are_refused(run, folders):
    kinds = ("--control-kind", "canny", "--control-kind", "depth")
    done = run("controlar", "--control", folders / "edges.png", "--control", folders / "narrow.png", *kinds)
    fails(done, "32x64", "64x64", "one size")


@pytest.mark.parametrize("strengths", [("0.8",), ("0.8", "0.2")])
def test_pictures_follow_controls_and_have_their_size(run, folders, tmp_path, strengths):
    given = [part for each in strengths for part in ("--strength", each)]
    narrow = folders / "narrow.png"
    kinds = ("canny", "depth")[: len(strengths)]
    controls = [part for kind in kinds for part in ("--control", narrow, "--control-kind", kind)]
    done = run("controlar", *controls, *given, "--trace", tmp_path / "trace.png")
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out.png").size == (32, 64)
    assert Image.open(tmp_path / "trace.png").size == (2 * 4 * 32, 4 * 64)


def test_another_control_is_another_job(run, folders):
    control = ("--control", folders / "edges.png", "--control-kind", "canny")
    assert run("controlar", *control, out="job").returncode == 0
    again = run("controlar", *control, "--json", out="job")
    assert json.loads(again.stdout)["skipped"] == 1
    fails(run("controlar", *control, "--strength", "0.3", out="job"), "job")


def test_a_folder_of_weights_alone_says_what_to_name_beside_it(folders, tmp_path):
    for family in TOKENIZER:
        done = command("sample", "--model", str(folders / family), "--class", "1", "--out", str(tmp_path / "x.png"))
        fails(done, f"--model {family} --checkpoint", "--tokenizer")


def test_a_trace_of_nothing_is_not_promised(run, tmp_path):
    assert run("maskgit", out="job").returncode == 0
    again = run("maskgit", "--trace", tmp_path / "trace.png", out="job")
    assert again.returncode == 0 and "no trace" in again.stderr and not (tmp_path / "trace.png").exists()


def test_a_family_without_weights_asks_for_them(tmp_path):
    for name, said in (("maskgit", "--checkpoint"), ("xar-b", "xAR-B.pth"), ("enat-l-256", "nnet_ema.pth")):
        done = command("sample", "--model", name, "--class", "1", "--out", str(tmp_path / "x.png"))
        assert done.returncode == 2, done.stderr
        assert said in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("options", "card", "own"),
    [
        ({"checkpoint": "models/xAR-L.pth"}, "xar-l", True),
        ({"checkpoint": "OliverRen/xAR:xAR-L.pth"}, "xar-l", True),
        ({"name": "OliverRen/xAR:xAR-L.pth"}, "xar-l", True),
        ({"checkpoint": "wondervictor/ControlAR:hed.safetensors"}, "controlar-hed", True),
        ({"checkpoint": "yucornetto/generator_titok_l32_imagenet"}, "maskgit-titok-l-32", True),
        ({"name": "yucornetto/generator_titok_l32_imagenet"}, "maskgit-titok-l-32", True),
        ({"name": "maskgit-titok-l-32", "checkpoint": "generator_titok_l32"}, "maskgit-titok-l-32", True),
        ({"name": "xar-b", "checkpoint": "renamed.pth"}, "xar-b", True),
        ({"name": "xar", "checkpoint": "mine.pth"}, "xar-mini", False),  # an embedded model is another one
        ({"name": "enat", "checkpoint": "mine.pth"}, "enat-mini", False),
        ({"checkpoint": "mine.pth"}, "llamagen-mini", False),
    ],
)
def test_weights_have_the_settings_of_their_card_however_they_are_named(options, card, own):
    found = resolve_generator(**{"name": None} | options)
    assert (found.card.name, found.own) == (card, own)


def test_a_hub_id_alone_draws_as_its_card_says(tmp_path, monkeypatch):
    model = build("xar")
    monkeypatch.setitem(XAR.presets, "xAR-B", model.config)
    torch.save(model.state_dict(), tmp_path / "xAR-B.pth")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, file: str(tmp_path / file))
    for options in ({"checkpoint": "OliverRen/xAR:xAR-B.pth"}, {"name": "OliverRen/xAR:xAR-B.pth"}):
        pipe = vistok.pipeline(**options, tokenizer="kl-mini")
        assert (type(pipe.model), pipe.guidance, pipe.sampler().num_steps) == (XAR, 2.7, 40)


def test_weights_of_another_family_than_the_named_model_are_refused():
    for name in ("xar", "xar-b", "maskgit"):
        with pytest.raises(VistokError, match=r"c2i_B_256\.pt' is a llamagen.*leave --model out"):
            resolve_generator(name, "c2i_B_256.pt")


@pytest.mark.parametrize("stored", ["turned", "transparent", "16 bits"])
def test_a_control_picture_in_memory_is_the_one_of_its_file(folders, tmp_path, stored):
    image, more = Image.effect_mandelbrot((61, 34), (-2, -1.5, 1, 1.5), 50), {}
    if stored == "turned":
        more["exif"] = Image.Exif()
        more["exif"][0x0112] = 6  # by a quarter
    elif stored == "transparent":
        image = Image.merge("LA", (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    else:
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(tmp_path / "control.png", **more)
    pipe = vistok.pipeline("controlar", checkpoint=folders / "controlar", tokenizer="vq-mini")
    read = pipe.with_control(tmp_path / "control.png", "canny")
    given = pipe.with_control(Image.open(tmp_path / "control.png"), "canny")
    assert torch.equal(given.control[0].picture, read.control[0].picture)
    assert given.model.shape == read.model.shape == ((16, 9) if stored == "turned" else (9, 16))


def test_samplers_are_listed_with_their_defaults():
    listed = command("samplers").stdout
    assert "masked" in listed and "xar" in listed
    with pytest.raises(VistokError, match="num_steps"):
        parse_sampler("xar:steps=4")
