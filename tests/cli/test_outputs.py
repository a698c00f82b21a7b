"""Files that commands write: what cannot be written is told before the work, and no output replaces another."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from vistok.cli.main import app
from vistok.cli.output import print_table
from vistok.errors import VistokError

# Commands up to the option whose picture they write; the model that they name does not exist.
PICTURES = [
    ("sample", "--prompt", "a red circle", "--model", "nowhere", "--trace"),
    ("compress", "--image", "w.png", "--question", "how many?", "--model", "nowhere", "--overlay"),
    ("ground", "--image", "w.png", "--text", "the red circle", "--model", "nowhere", "--out"),
    ("ground", "--image", "w.png", "--text", "the red circle", "--model", "nowhere", "--mask"),
    ("eval", "control", "--model", "nowhere", "--out"),
    ("eval", "vqa", "--model", "nowhere", "--plot"),
    ("eval", "reconstruction", "--tokenizer", "nowhere", "--plot"),
    ("eval", "reconstruction", "--tokenizer", "nowhere", "--pictures"),
    ("eval", "language", "--tokenizer", "nowhere", "--plot"),
    ("eval", "needle", "--model", "nowhere", "--plot"),
    ("eval", "fid", "nowhere", "nowhere", "--plot"),
    ("bench", "samplers", "--model", "nowhere", "--plot"),
]
named = pytest.mark.parametrize("command", PICTURES, ids=lambda command: " ".join((*command[:2], command[-1])))


@pytest.fixture
def mistake(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("w.png")

    def told(*command: str) -> str:
        error = CliRunner().invoke(app, list(command)).exception
        assert isinstance(error, VistokError), error
        return str(error)

    return told


@named
@pytest.mark.parametrize("target", ["x.txt", "folder.png", "w.png/x.png"])
def test_a_picture_that_cannot_be_written_is_told_before_the_work(mistake, tmp_path, command, target):
    (tmp_path / "folder.png").mkdir()
    sentence = mistake(*command, target)
    assert target.split("/")[0] in sentence and "nowhere" not in sentence


@named
def test_two_outputs_do_not_share_a_file(mistake, command):
    sentence = mistake(*command, "x.png", "--json=./x.png")
    assert "x.png" in sentence and "two outputs" in sentence


def test_the_trace_does_not_replace_the_pictures(mistake):
    sentence = mistake("sample", "--prompt", "a red circle", "--model", "nowhere", "--out", "x.png", "--trace", "x.png")
    assert "two outputs" in sentence


def test_how_pictures_become_larger_is_told_where_they_do_not(mistake):
    sentence = mistake("sample", "--prompt", "a red circle", "--model", "nowhere", "--upscale-by", "nearest")
    assert "--upscale-by" in sentence and "--upscale 2" in sentence


UNREAD = [
    (("eval", "geneval", "--images", "set"), ("--cfg", "2")),
    (("eval", "geneval", "--images", "set"), ("--per-prompt", "4")),
    (("eval", "geneval", "--images", "set"), ("--sampler", "ar")),
    (("eval", "geneval", "--images", "set"), ("--clip", "nowhere")),
    (("eval", "geneval", "--images", "set", "--ceiling", "summary.json"), ("--tokenizer", "vq-mini")),
    (("eval", "geneval", "--model", "nowhere", "--out", "set"), ("--tokenizer", "vq-mini")),
    (("eval", "geneval", "--model", "nowhere", "--out", "set", "--metadata", "m.jsonl"), ("--per-task", "2")),
    (("eval", "reconstruction", "a", "b"), ("--tokens", "4")),
    (("eval", "reconstruction", "a", "b"), ("--plot", "x.png")),
    (("eval", "reconstruction", "a", "b"), ("--rfid", "scenes-features")),
    (("eval", "reconstruction", "a", "b"), ("--size", "64")),
    (("eval", "reconstruction", "a", "b"), ("--lpips-head", "alex.pth")),
    (("eval", "reconstruction", "--tokenizer", "nowhere"), ("--convention", "llamagen")),
    (("eval", "reconstruction", "--tokenizer", "nowhere"), ("--weights", "w.pth")),
    (("eval", "measure", "a", "b", "--metrics", "psnr"), ("--extractor", "clip")),
    (("eval", "measure", "a", "b", "--metrics", "psnr,ssim"), ("--weights", "w.pth")),
    (("eval", "vqa", "--model", "nowhere", "--questions", "q.jsonl"), ("--scenes", "3")),
    (("eval", "vqa", "--model", "nowhere", "--questions", "q.jsonl"), ("--scene-split", "hard")),
    (("eval", "vqa", "--model", "nowhere", "--methods", "none"), ("--keep", "25")),
    (("eval", "vqa", "--model", "nowhere", "--methods", "none"), ("--positions", "original")),
    (("eval", "vqa", "--model", "tokenpacker-mini"), ("--keep", "25")),
    (("eval", "vqa", "--model", "tokenpacker-mini"), ("--positions", "original")),
    (("bench", "text", "--model", "nowhere", "--spec-bench", "q.jsonl"), ("--prompt-tokens", "3")),
    (("tokenize", "w.png"), ("--lpips-net", "vgg")),
    (("compress", "--model", "nowhere", "--image", "w.png", "-q", "x", "--method", "fastv"), ("--overlay", "o.png")),
    (
        ("compress", "--model", "nowhere", "--image", "w.png", "-q", "x", "--method", "sparsevlm"),
        ("--overlay", "o.png"),
    ),
    (("models", "llamagen-mini"), ("--task", "draft")),
]


@pytest.mark.parametrize(("command", "unread"), UNREAD, ids=lambda words: " ".join(words))
def test_an_option_that_nothing_would_read_is_refused(mistake, tmp_path, command, unread):
    assert unread[0] in mistake(*command, *unread)
    (tmp_path / "options.yaml").write_text(f"{unread[0].removeprefix('--')}: {unread[1]}")
    assert unread[0] in mistake(*command, "--config", "options.yaml")


@pytest.mark.parametrize(
    "command",
    [
        ("write", "def", "--new-tokens", "99999"),
        ("bench", "text", "--prompt-tokens", "99999"),
        ("bench", "text", "--spec-bench", "long.jsonl", "--draft", "text-mini-draft"),
        ("eval", "needle", "--lengths", "99999"),
        ("eval", "edits", "--length", "99999"),
    ],
    ids=lambda command: " ".join(command[:3]),
)
def test_texts_of_more_tokens_than_the_model_reads_are_refused(mistake, tmp_path, command):
    (tmp_path / "long.jsonl").write_text(json.dumps({"category": "writing", "turns": ["def " * 9999]}))
    told = mistake(*command, "--model", "text-mini-draft")
    assert "'text-mini-draft' reads" in told and "shorter" in told


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("eval", "edits", "--inserted", "60"), "60 tokens are inserted"),
        (("eval", "vqa", "--keep", "0.25"), "write 25"),
        (("eval", "vqa", "--methods", "fastw"), "fastv"),
        (("eval", "control", "--kind", "cany"), "canny"),
        (("sample", "--prompt", "a circle", "--sampler", "sdj"), "sjd"),
    ],
)
def test_mistakes_in_options_are_told_before_a_model_is_looked_for(mistake, command, told):
    assert told in mistake(*command, "--model", "nowhere")


def test_a_flag_that_nothing_would_read_is_refused(mistake):
    assert "--embedded" in mistake("models", "llamagen-b-256", "--embedded")


def test_control_pictures_of_files_are_checked_first(mistake):
    assert "x.txt" in mistake("data", "control", "w.png", "--out", "x.txt")


def test_a_table_breaks_no_line_where_it_is_read_by_a_machine(capsys) -> None:
    print_table(("name", "value [x]"), [("a name " * 40, "1"), ("b[v2]", "2")])
    first, second = (line for line in capsys.readouterr().out.splitlines() if line[0] == "│")
    assert ("a name " * 40).strip() in first and "b[v2]" in second
