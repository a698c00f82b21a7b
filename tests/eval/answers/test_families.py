"""Every command on every family, as a user has it: a folder with the model and its processor."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import typer
from PIL import Image, ImageDraw
from typer.testing import CliRunner

from tests.projectors import folders
from vistok.cli.compress import compress
from vistok.cli.eval.vqa import vqa
from vistok.errors import VistokError
from vistok.eval.answers.prompts import prompt_for
from vistok.projectors.families import FAMILIES

NOT_FULL = {"gemma3", "aya_vision", "cohere2_vision", "lfm2_vl"}  # some layers slide or convolve, which fastv refuses
CUT = {"llava", "fast_vlm"}  # whose processor cuts a square out of the middle

app = typer.Typer()
app.command()(compress)
app.command("vqa")(vqa)


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)


@pytest.fixture(scope="module", params=list(folders.PROCESSORS))
def family(request, tmp_path_factory):
    folder = folders.save(request.param, tmp_path_factory.mktemp(request.param))
    picture = Image.new("RGB", (75, 50), "white")
    ImageDraw.Draw(picture).rectangle((0, 0, 30, 25), fill="red")
    picture.save(folder / "picture.png")
    return request.param, folder


def test_every_family_is_tested():
    alike = {"smolvlm", "paligemma"}  # Idefics3 under a processor with a dependency of its own; Gemma 3 with a prefix
    assert set(FAMILIES) - alike == set(folders.PROCESSORS)


def test_compress(family, tmp_path):
    name, folder = family
    options = [
        "--model",
        folder,
        "--image",
        folder / "picture.png",
        "-q",
        "w5 w9",
        "--max-new-tokens",
        3,
        "--json",
        "-",
    ]
    done = run(
        "compress", *options, "--method", "uniform", "--keep", "50%", "--compare", "--overlay", tmp_path / "o.png"
    )
    assert done.exit_code == 0, done.exception
    answers = json.loads(done.stdout.splitlines()[-1])
    assert 0.3 < answers["uniform"]["visual_tokens"] / answers["all"]["visual_tokens"] < 0.7
    drawn = Image.open(tmp_path / "o.png")
    whole = 1.0 if name in CUT else 75 / 50
    assert drawn.width / drawn.height == pytest.approx(whole, rel=0.01)
    inside = run("compress", *options, "--method", "fastv", "--keep", "5")
    if name in NOT_FULL:
        assert "full attention" in str(inside.exception)
        return
    assert inside.exit_code == 0, inside.exception
    assert json.loads(inside.stdout.splitlines()[-1])["fastv"]["visual_tokens"] == 5


def test_vqa(family, tmp_path):
    name, folder = family
    Image.new("RGB", (30, 60), "blue").save(tmp_path / "b.png")
    lines = [
        {"image": str(folder / "picture.png"), "question": "w5 w6 w7", "answers": ["w5"]},
        {"image": "b.png", "question": "w8", "answers": ["w9"]},
        {"image": str(folder / "picture.png"), "question": "w4", "answers": ["w9"]},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "points.json"
    inside = "uniform" if name in NOT_FULL else "fastv"
    methods = ["--methods", f"divprune,{inside}", "--keep", "50", "--batch-size", 2, "--max-new-tokens", 2]
    methods += ["--json", out]
    done = run("vqa", "--model", folder, "--questions", tmp_path / "q.jsonl", *methods)
    assert done.exit_code == 0, done.exception
    full, before, inside = json.loads(out.read_text())
    for point in (before, inside):
        assert point["visual_tokens"] / full["visual_tokens"] == pytest.approx(0.5, abs=0.12)
        assert point["cache_bytes"] < full["cache_bytes"]
        assert point["prefill_seconds"] > 0
    if name not in NOT_FULL:
        assert before["cache_bytes"] < inside["cache_bytes"]  # whose first layers are full


def test_vqa_about_scenes(family):
    _, folder = family
    done = run("vqa", "--model", folder, "--scenes", 1, "--per-scene", 2, "--methods", "random", "--keep", "50")
    assert done.exit_code == 0, done.exception


def test_placeholders_in_a_question(family, tmp_path):
    _, folder = family
    done = run("compress", "--model", folder, "--image", folder / "picture.png", "-q", "w5 <image> w9")
    assert isinstance(done.exception, VistokError)
    assert "'<image>'" in str(done.exception)
    assert "leave it out" in str(done.exception)
    line = {"image": str(folder / "picture.png"), "question": "<image> w5", "answers": ["w5"]}
    (tmp_path / "q.jsonl").write_text(json.dumps(line))
    done = run("vqa", "--model", folder, "--questions", tmp_path / "q.jsonl")
    assert "'<image>'" in str(done.exception)


def test_a_bad_picture_does_not_end_a_run(family, tmp_path):
    name, folder = family
    Image.new("RGB", (1, 300)).save(tmp_path / "thin.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    names = [str(folder / "picture.png"), "thin.png", "broken.png", "absent.png"]
    lines = [json.dumps({"image": name, "question": "w5", "answers": ["w5"]}) for name in names]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    options = ["--methods", "none", "--max-new-tokens", 1]
    done = run("vqa", "--model", folder, "--questions", tmp_path / "q.jsonl", *options)
    assert done.exit_code == 0, done.exception
    assert "broken.png" in done.stderr
    assert "absent.png" in done.stderr
    refuses_thin = name.startswith(("qwen", "mistral3", "glm4v"))
    assert ("thin.png" in done.stderr) == refuses_thin
    assert f"{1 if refuses_thin else 2} questions" in done.stdout.replace("\n", " ")
    (tmp_path / "q.jsonl").write_text(lines[2])
    done = run("vqa", "--model", folder, "--questions", tmp_path / "q.jsonl", *options)
    assert isinstance(done.exception, VistokError)
    if refuses_thin:
        done = run("compress", "--model", folder, "--image", tmp_path / "thin.png", "-q", "w5")
        assert isinstance(done.exception, VistokError)
        assert "1x300" in str(done.exception)


def _tiles(name, inputs):
    """The views of one picture as pictures, [V, 3, h, w], from a processor's output."""
    pixels = inputs["pixel_values"]
    if name != "lfm2_vl":
        return list(pixels.flatten(0, -4))
    shapes = inputs["spatial_shapes"].tolist()
    flat = [patches[: h * w].view(h, w, 4, 4, 3) for patches, (h, w) in zip(pixels, shapes, strict=True)]
    return [x.permute(4, 0, 2, 1, 3).flatten(3, 4).flatten(1, 2) for x in flat]


TILED = ["internvl", "idefics3", "aya_vision", "cohere2_vision", "lfm2_vl", "perception_lm"]


@pytest.mark.parametrize("name", TILED)
@pytest.mark.parametrize("size", [(120, 60), (50, 100), (20, 20)])
def test_tiles_are_arranged_as_the_picture(name, size):
    """What a family says of a picture's tiles, against their pixels: side by side they are the picture."""
    processor, family = folders.PROCESSORS[name](), FAMILIES[name]()
    ramps = np.stack(np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1])), -1)
    picture = Image.fromarray(np.concatenate([ramps, ramps[..., :1]], -1).astype("uint8"))
    inputs = processor(images=[[picture]], text=prompt_for(processor, "w5"), return_tensors="pt")
    tiles = _tiles(name, inputs)
    rows, cols = family.arrangement(processor.image_processor, picture, len(tiles))
    tiles = tiles[int(family.whole_first and len(tiles) > 1) :][: rows * cols]
    assert len(tiles) == rows * cols
    drawn = torch.cat([torch.cat(tiles[r * cols : (r + 1) * cols], 2) for r in range(rows)], 1)
    wide, high = (torch.linspace(0, 1, n) for n in (drawn.shape[2], drawn.shape[1]))
    for channel, ramp in ((0, wide[None].expand_as(drawn[0])), (1, high[:, None].expand_as(drawn[0]))):
        assert torch.corrcoef(torch.stack([drawn[channel].flatten(), ramp.flatten()]))[0, 1] > 0.99
    if size != (20, 20):
        assert rows * cols > 1
