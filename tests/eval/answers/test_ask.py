"""Costs, overlays, and ``vistok compress`` from end to end on a toy model with a real processor."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.projectors import folders, tiny
from vistok.errors import VistokError
from vistok.eval.answers.ask import ask, build_compressor, kept_overlay, load, parse_keep
from vistok.projectors import GlobalCom2, VtcCls
from vistok.projectors.cost import kv_cache_bytes, prefill_flops
from vistok.projectors.interface import Canvas
from vistok.projectors.overlay import kept_map, overlay
from vistok.projectors.registry import COMPRESSORS


class Vicuna7B:
    hidden_size, num_attention_heads, num_hidden_layers, intermediate_size = 4096, 32, 32, 11008


@pytest.mark.parametrize(("tokens", "teraflops"), [(2880, 41.7), (2160, 30.4), (1440, 19.7), (720, 9.6), (288, 3.8)])
def test_prefill_flops_are_those_that_globalcom2_reports(tokens, teraflops):
    assert prefill_flops(Vicuna7B, tokens) / 1e12 == pytest.approx(teraflops, abs=0.06)


def test_costs_add_up_by_layer():
    lengths = [576] * 2 + [144] * 30
    assert (
        prefill_flops(Vicuna7B, lengths) == (2 * prefill_flops(Vicuna7B, 576) + 30 * prefill_flops(Vicuna7B, 144)) // 32
    )
    assert kv_cache_bytes(Vicuna7B, 576) == 576 * 32 * 2 * 4096 * 2
    assert kv_cache_bytes(Vicuna7B, lengths, 4) == (2 * 576 + 30 * 144) * 2 * 4096 * 4


def test_overlay_darkens_what_was_dropped():
    kept = kept_map(torch.tensor([1, -1]), (2, 2))
    assert kept.tolist() == [[False, True], [False, False]]
    drawn = overlay(Image.new("RGB", (40, 40), "white"), kept, least_side=40)
    assert drawn.getpixel((30, 10)) == (255, 255, 255)
    assert max(drawn.getpixel((10, 10))) < 100
    crops = kept_map(torch.tensor([0, 4, 9]), (2, 2), Canvas(1, 2, 0, 1, 0, 4))
    assert crops.tolist() == [[True, False, False, True]]


def test_keep_as_written():
    assert parse_keep("64") == 64
    assert parse_keep("25%") == parse_keep("0.25") == 0.25
    assert parse_keep("100%") == 1.0
    with pytest.raises(VistokError, match="cannot keep 'few'"):
        parse_keep("few")
    assert isinstance(build_compressor("globalcom2", 0.5), GlobalCom2)
    for name, keep, sentence in [
        ("tokenpacker", None, "trained"),
        ("pmod", None, "pmod-mini"),
        ("correlation", 4, "leave keep out"),
        ("vtccls", None, "did you mean"),
    ]:
        with pytest.raises(VistokError, match=sentence):
            build_compressor(name, keep)
    assert build_compressor("vtc-cls").keep == VtcCls().keep


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return folders.save("llava", tmp_path_factory.mktemp("llava"))


def test_command(model_folder, tmp_path):
    from vistok.cli.main import app

    picture = tmp_path / "picture.png"
    Image.effect_noise((50, 30), 60).convert("RGB").save(picture)
    asked = ["compress", "--model", str(model_folder), "--image", str(picture), "-q", "w5 w9", "--max-new-tokens", "4"]
    result = CliRunner().invoke(
        app, [*asked, "--keep", "25%", "--compare", "--json", "--overlay", str(tmp_path / "o.png")]
    )
    assert result.exit_code == 0, result.exception
    answers = json.loads(result.stdout.splitlines()[-1])
    full, fewer = answers["all"], answers["vtc-cls"]
    assert (full["visual_tokens"], fewer["visual_tokens"]) == (36, 9)
    assert full["prompt_tokens"] - fewer["prompt_tokens"] == 27
    assert full["cache_bytes"] - fewer["cache_bytes"] == 27 * 4 * 2 * 24 * 4
    assert full["prefill_flops"] > fewer["prefill_flops"]
    assert Image.open(tmp_path / "o.png").size[0] >= 336
    plain = CliRunner().invoke(app, [*asked, "--method", "fastv", "--keep", "9"])
    assert "9 visual tokens" in plain.stdout
    for wrong, sentence in [
        (["--keep", "1000"], "cannot keep 1000"),
        (["--method", "zip"], "unknown compression method"),
        (["--dtype", "int8"], "bfloat16, float16, float32"),
        (["--max-new-tokens", "0"], "at least 1"),
        (["--method", "fastv", "--overlay", str(tmp_path / "f.png")], "leave the overlay out"),
    ]:
        failed = CliRunner().invoke(app, [*asked, *wrong])
        assert isinstance(failed.exception, VistokError)
        assert sentence in str(failed.exception)


def test_the_compressor_of_the_documentation_runs():
    """The code block under "A compressor of your own", on crops with padding."""
    from pathlib import Path

    from vistok.projectors import compress

    text = (Path(__file__).parents[3] / "docs" / "projectors.md").read_text(encoding="utf-8")
    code = text.split("## A compressor of your own")[1].split("```python")[1].split("```")[0]
    assert len(code.strip().splitlines()) <= 22
    names: dict = {}
    exec(code, names)
    model, inputs = tiny.llava_next(), tiny.llava_next_inputs()
    with compress(model, names["Contrast"]()) as compression:
        model.generate(**inputs, max_new_tokens=2)
    assert all(n < m for n, m in zip(compression.last.after, compression.last.before, strict=True))


@pytest.mark.parametrize("model", ["llava-mini", "llava-next-mini", "tokenpacker-mini"])
def test_embedded_models_are_asked_without_further_options(tmp_path, model):
    from vistok.cli.main import app

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    asked = ["compress", "--model", model, "--image", str(tmp_path / "red.png"), "-q", "how many circles are there?"]
    done = CliRunner().invoke(app, [*asked, "--json"])
    assert done.exit_code == 0, done.exception
    assert next(iter(json.loads(done.stdout).values()))["visual_tokens"] > 0
    if model == "tokenpacker-mini":
        for more in (["--method", "vtc-cls"], ["--keep", "4"], ["--compare"], ["--overlay", str(tmp_path / "o.png")]):
            failed = CliRunner().invoke(app, [*asked, *more])
            error = failed.exception
            assert isinstance(error, VistokError) and "tokenpacker" in str(error) and more[0] in str(error)
            assert not failed.stdout


@pytest.fixture(scope="module")
def in_crops():
    return load("llava-next-mini", "cpu", "float32")


@pytest.mark.parametrize("size", [(1, 1), (700, 3), (3, 700), (1, 64)])
@pytest.mark.parametrize("name", list(COMPRESSORS))
def test_pictures_as_thin_as_a_hair_are_answered_or_refused(in_crops, name, size):
    picture, question = Image.new("RGB", size, "red"), "how many circles are there?"
    try:
        answer, report = ask(*in_crops, picture, question, build_compressor(name), 1)
        kept_overlay(in_crops[1], picture, report)
    except VistokError as error:
        assert str(error).count(". ") <= 1
    else:
        assert answer.visual_tokens > 0
