"""What commands promise: mistakes are told before the work, figures outlive a failed plot, and JSON is JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.eval.noise import write_noise
from vistok.cli.eval import app
from vistok.cli.eval.common import figure_text
from vistok.errors import VistokError
from vistok.eval import grounding, plots
from vistok.eval.answers.keep_curves import Point, plot_keep_curves
from vistok.eval.decoding.comparison import Row
from vistok.eval.decoding.estimate import Estimate
from vistok.eval.decoding.plot import plot as plot_samplers
from vistok.eval.geneval import write_prompt_folder
from vistok.eval.geneval.metadata import colors
from vistok.eval.language import language_statistics, plot_language
from vistok.eval.needle import NeedlePoint, plot_needles
from vistok.eval.reconstruction.rate_distortion import RatePoint, plot_rate_distortion
from vistok.eval.sets import features
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.tokenizers import VQTokenizer


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two folders of pictures, a set of prompts and files of answers and captions, in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_noise(tmp_path / "real", tmp_path / "fake")
    write_prompt_folder(tmp_path / "set", 0, colors("circle", "red"), [Image.new("RGB", (64, 64))])
    (tmp_path / "answers.jsonl").write_text('{"prediction": "yes", "answer": "yes"}')
    (tmp_path / "captions.jsonl").write_text('{"image": "00.png", "caption": "noise"}')
    (tmp_path / "before.json").write_text("[]")
    (tmp_path / "one.json").write_text('[{"name": "a", "value": 1.0, "protocol": {"metric": "fid"}}]')
    return tmp_path


SEEN = ("--extractor", "scenes-features", "--workers", "0")
COMMANDS = {
    "measure": ("measure", "real", "fake", *SEEN),
    "fid": ("fid", "real", "fake", *SEEN),
    "stats": ("stats", "real", "-o", "s.npz", *SEEN),
    "geneval": ("geneval", "--images", "set"),
    "clipscore": ("clipscore", "--images", "real", "--captions", "captions.jsonl", "--clip", "no/where"),
    "reconstruction": ("reconstruction", "--tokenizer", "vq-mini", "--count", "2"),
    "two folders": ("reconstruction", "real", "fake"),
    "language": ("language", "--count", "4"),
    "answers": ("answers", "answers.jsonl", "--benchmark", "exact"),
    "compare": ("compare", "one.json"),
    "metrics": ("metrics",),
}
DRAWING = ("measure", "fid", "reconstruction", "language")


@pytest.fixture
def no_work(monkeypatch):
    """Fails when pictures are read, features extracted, tokens made or answers scored."""

    def work(*_, **__):
        raise AssertionError("work began")

    for module, name in (
        ("vistok.eval.sets.distribution", "extract_features"),
        ("vistok.eval.sets.features", "extract_features"),
        ("vistok.eval.geneval.evaluate", "score_images"),
        ("vistok.eval.geneval.paint", "reconstruction_ceiling"),
        ("vistok.eval.reconstruction.pictures", "PictureSource.batches"),
        ("vistok.eval.sets.pictures", "load_image"),
        ("vistok.eval.language", "language_statistics"),
        ("vistok.eval.answers.benchmarks", "score_answers"),
        ("vistok.eval.answers.benchmarks", "read_answers"),
        ("vistok.data.images", "load_image"),
    ):
        monkeypatch.setattr(f"{module}.{name}", work)


def refused(arguments) -> str:
    outcome = CliRunner().invoke(app, [*arguments])
    assert isinstance(outcome.exception, VistokError), outcome.output
    return str(outcome.exception)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_cannot_be_written_is_told_first(world, no_work, command):
    for place, told in (("real", "is a folder"), ("answers.jsonl/r.json", "not a folder")):
        assert told in refused((*COMMANDS[command], "--json", place))


@pytest.mark.parametrize("command", DRAWING)
def test_a_plot_that_cannot_be_drawn_is_told_first(world, no_work, monkeypatch, command):
    for place, told in (("real", "is a folder"), ("curve.abc", ".png"), ("curve", ".png")):
        assert told in refused((*COMMANDS[command], "--plot", place))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in refused((*COMMANDS[command], "--plot", "curve.png"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("stats", "real", "-o", "real/00.png/s.npz", *SEEN), "not a folder"),
        (("stats", "one", "-o", "s.npz", *SEEN), "at least 2"),
        (("fid", "real", "one", *SEEN), "at least 2"),
        (("fid", "real", "fake", "--metrics", "kid", *SEEN), "kid:subset_size=12"),
        (("fid", "real", "two", "--metrics", "fid-infinity", *SEEN), "at least 3"),
        (("fid", "real", "two", "--plot", "curve.png", *SEEN), "at least 3"),
        (("fid", "real", "fake", "--metrics", "precision:neighbours=12", *SEEN), "at least 13"),
        (("fid", "real", "fake", "--metrics", "fid,sfid", *SEEN), "inception"),
        (("geneval", "--images", "set", "--tokenizer", "vq-minni"), "vq-mini"),
        (("geneval", "--images", "set", "--out", "answers.jsonl"), "is a file"),
        (("geneval", "--images", "set", "--ceiling", "before.json"), "summary.json"),
        (("reconstruction", "one", "--tokenizer", "vq-mini", "--rfid", "scenes-features"), "at least 2"),
        (("reconstruction", "real", "fake", "--lpips", "alex"), "--lpips-head"),
        (("reconstruction", "real", "one"), "only in"),
        (("language", "--count", "4", "--held-out", "1.5"), "between 0 and 1"),
        (("language", "one"), "at least 2"),
        (("language", "--count", "4", "--held-out", "0.1"), "none to score"),
        (("language", "--count", "4", "--device", "cuda:99"), "cuda:99"),
        (("reconstruction", "--tokenizer", "vq-mini", "--device", "gpu"), "gpu"),
        (("fid", "real", "absent.npz", *SEEN), "there is no file 'absent.npz'"),
        (("compare", "before.json"), "holds no result"),
        (("compare", "one"), "cannot be read (Is a directory)"),
        (("compare", "summary.json"), "is no result file: name one"),
        (("grounding", "--model", "text-mini"), "name one such as pink-mini, read-mini, vpt-mini"),
    ],
)
def test_what_is_known_at_the_start_is_told_at_the_start(world, no_work, arguments, told):
    (world / "summary.json").write_text('{"overall": 1.0}')  # what geneval leaves in a folder of pictures
    (world / "one").mkdir()
    Image.new("RGB", (20, 20)).save(world / "one" / "00.png")
    (world / "two").mkdir()
    for name in ("00.png", "01.png"):
        Image.new("RGB", (20, 20)).save(world / "two" / name)
    assert told in refused(arguments)


def test_ngrams_that_no_picture_has_are_told_behind_the_first_pictures(world, monkeypatch):
    monkeypatch.setattr("vistok.eval.language.language_statistics", lambda *_: 1 / 0)
    encoded, encode = [], VQTokenizer.encode
    monkeypatch.setattr(VQTokenizer, "encode", lambda self, images: encoded.append(len(images)) or encode(self, images))
    told = refused(("language", "--count", "6", "--batch-size", "2", "--ngrams", "300"))
    assert "300-grams need pictures of at least 300 tokens, got 256" in told and encoded == [2]


@pytest.mark.parametrize("command", DRAWING)
def test_figures_are_printed_and_written_before_anything_is_drawn(world, monkeypatch, command):
    monkeypatch.setattr(plots.new_figure(1, 1).__class__, "savefig", lambda *_, **__: 1 / 0)
    outcome = CliRunner().invoke(app, [*COMMANDS[command], "--plot", "curve.png", "--json", "r.json"])
    assert isinstance(outcome.exception, ZeroDivisionError)
    assert json.loads((world / "r.json").read_text()) and "─" in outcome.output
    assert not (world / "curve.png").exists()


def strict(text: str):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


HALF = Estimate(0.5, 0.4, 0.6)
PLOTS = {
    "frechet": lambda path: plots.plot_frechet_curve(
        FeatureStatistics.of(torch.eye(6, 2)), torch.arange(12.0).view(6, 2), path
    ),
    "needles": lambda path: plot_needles(
        [NeedlePoint("full", 64, 1, 2, HALF, (0.0, 1.0), (1,), reads=1.0, kept=1.0)], path
    ),
    "answers": lambda path: plot_keep_curves([Point("all", 1.0, 0.5, (0.4, 0.6), {}, 16, 1, 1, 1)], path, "all"),
    "language": lambda path: plot_language(language_statistics(torch.arange(8).view(4, 2), 8, (1,), 0.5), path),
    "rate": lambda path: plot_rate_distortion({"x": [RatePoint(1, 20.0, 0.5, bytes=10, payload=8)]}, 64, path),
    "samplers": lambda path: plot_samplers(
        [Row("ar", True, {"accepted_length": HALF, "speed_up": HALF})], {1: 0.1}, path
    ),
}


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_every_plot_is_whole_or_absent_and_makes_its_folder(tmp_path, monkeypatch, draw):
    path = tmp_path / "new" / "curve.png"
    draw(path)
    before = path.read_bytes()

    def killed(_, file, **__):
        Path(file).write_bytes(before[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(plots.new_figure(1, 1).__class__, "savefig", killed)
    with pytest.raises(KeyboardInterrupt):
        draw(path)
    assert [each.name for each in path.parent.iterdir()] == ["curve.png"] and path.read_bytes() == before


@pytest.mark.parametrize("name", ["run[v2]", ":smile:", "[bold]", "long" * 40])
def test_tables_say_the_names_that_json_says(world, name):
    (world / "fake").rename(name)
    outcome = CliRunner().invoke(app, ["measure", "real", name, "--metrics", "psnr", "--json", "r.json"])
    assert outcome.exit_code == 0, outcome.exception
    assert json.loads((world / "r.json").read_text())[0]["name"] == name
    cells = [line.split("│")[1].strip() for line in outcome.stdout.splitlines() if line.startswith("│")]
    assert "".join(cells) == name


@pytest.mark.parametrize("convention", ["default", "llamagen"])
def test_a_measure_asks_of_pictures_what_it_needs_itself(world, convention):
    small = []
    for side, level in (("a", 0), ("b", 51)):
        (world / side).mkdir()
        Image.new("RGB", (4, 4), (level,) * 3).save(world / side / "0.png")
        small.append(side)
    spec = f"psnr:convention={convention}"
    outcome = CliRunner().invoke(app, ["measure", *small, "--metrics", spec, "--json", "-"])
    assert strict(outcome.stdout)[0]["value"] == pytest.approx(13.98, abs=0.2)
    assert "SSIM needs" in refused(("measure", *small, "--metrics", f"ssim:convention={convention}"))


@pytest.mark.parametrize("benchmark", ["exact", "pope", "mme"])
def test_answers_are_read_once_so_that_they_may_come_from_a_pipe(benchmark):
    lines = [{"prediction": "yes", "answer": "yes", "category": 7, "question_id": 1}] * 2
    reader, writer = os.pipe()
    os.write(writer, "\n".join(map(json.dumps, lines)).encode())
    os.close(writer)
    outcome = CliRunner().invoke(app, ["answers", f"/dev/fd/{reader}", "--benchmark", benchmark])
    os.close(reader)
    assert outcome.exit_code == 0, outcome.exception
    assert "2 samples" in outcome.output and ("200.0" if benchmark == "mme" else "1.0") in outcome.output


def test_pairs_that_are_equal_leave_valid_json(world):
    for name in ("real", "fake"):
        Image.new("RGB", (20, 20)).save(world / name / "00.png")
    outcome = CliRunner().invoke(app, ["reconstruction", "real", "fake", "--json", "-"])
    psnr, ssim = strict(outcome.stdout)
    assert psnr["details"] == {"identical pairs": 1.0} and 5 < psnr["value"] < 15 and psnr["std"] >= 0
    outcome = CliRunner().invoke(app, ["reconstruction", "real", "real", "--json", "-"])
    psnr, ssim = strict(outcome.stdout)
    assert psnr["value"] is None and ssim["value"] == pytest.approx(1)
    assert "none" in CliRunner().invoke(app, ["reconstruction", "real", "real"]).output


def test_what_is_left_out_of_a_folder_is_told(world):
    (world / "fake" / ".thumbnails").mkdir()
    Image.new("RGB", (20, 20)).save(world / "fake" / ".thumbnails" / "00.png")
    (world / "fake" / "log.txt").write_text("")
    for command in (COMMANDS["fid"], COMMANDS["two folders"], ("stats", "fake", "-o", "s.npz", *SEEN)):
        with pytest.warns(
            match=r"'fake' was left out: 1 hidden folder \(.thumbnails\); 1 file of other kinds \(.txt\)"
        ):
            outcome = CliRunner().invoke(app, [*command])
        assert outcome.exit_code == 0, outcome.output


def test_figures_of_grounding_take_a_picture_as_one_unit(monkeypatch):
    def asking(times):
        return lambda *_: lambda number: (("right", float(number % 2)) for _ in range(times))

    found = []
    for times in (1, 5):
        monkeypatch.setitem(grounding.MEASURES, "read", asking(times))
        found.append(grounding.evaluate_grounding("read-mini", 8)["right"])
    assert found[0] == found[1] and found[0].value == 0.5 and found[0].high - found[0].low > 0.5


def test_options_that_became_part_of_a_metrics_name_still_work(world):
    new = CliRunner().invoke(app, [*COMMANDS["fid"], "--metrics", "kid:subset_size=5", "--json", "-"])
    old = CliRunner().invoke(app, [*COMMANDS["fid"], "--metrics", "kid", "--kid-subset-size", "5", "--json", "-"])
    assert json.loads(old.stdout) == json.loads(new.stdout) and "kid:subset_size=5" in old.stderr


@pytest.mark.parametrize(
    ("figure", "text"),
    [(-1e-9, "0.0000"), (0.0, "0.0000"), (-0.00006, "-0.0001"), (None, "none"), (12.34567, "12.3457")],
)
def test_zero_has_no_sign(figure, text):
    assert figure_text(figure) == text


def test_a_metric_that_reads_no_reference_extracts_none(world, monkeypatch):
    asked = []
    real = features.extract_features
    monkeypatch.setattr(
        "vistok.eval.sets.distribution.extract_features", lambda p, *a, **k: asked.append(p.name) or real(p, *a, **k)
    )
    outcome = CliRunner().invoke(app, [*COMMANDS["fid"], "--metrics", "vendi"])
    assert outcome.exit_code == 0 and asked == ["fake"]
