"""``vistok write``: the same text whatever drafts, the tree of a step, and one sentence for what cannot be."""

from __future__ import annotations

import io
import json

import pytest
from typer.testing import CliRunner

from vistok.cli.main import app
from vistok.cli.write import write
from vistok.errors import VistokError
from vistok.samplers.named import TEXT_DRAFTERS

PROMPT = "def read(self, path):\n"


def run(*words: str):
    return CliRunner().invoke(app, ["write", PROMPT, "--new-tokens", "16", *words])


def test_the_text_is_the_same_whatever_drafts():
    plain = json.loads(run("--drafter", "none", "--json").stdout)
    assert plain["text"].startswith(PROMPT) and plain["tokens"] == plain["target_forwards"] == 16
    absent = ("medusa", "hidden-transfer", "clover", "s2d", "lexical-units")  # of which no weights are embedded
    for drafter in ["pearl", *(name for name in TEXT_DRAFTERS if name not in absent)]:
        found = json.loads(run("--drafter", drafter, "--json").stdout)
        assert found["text"] == plain["text"], drafter


def test_the_tree_of_a_step_is_shown():
    found = run("--drafter", "draft", "--tree", "2")
    assert found.exit_code == 0
    assert found.stdout.startswith(PROMPT)
    lines = found.stdout.split("what was kept:\n")[1].splitlines()
    assert lines[0].startswith("* ") and lines[-1].startswith("then ")


def test_a_text_is_kept_though_its_tree_is_none(tmp_path):
    found = run("--drafter", "lookup", "--tree", "99", "--json", str(tmp_path / "a.json"))
    assert isinstance(found.exception, VistokError)
    kept = json.loads((tmp_path / "a.json").read_text())
    assert kept["tokens"] == 16 and kept["draft"] is None  # lookup reads no draft model


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # of most locales, and of C and POSIX
def test_standard_input_that_is_no_text_is_told(errors, monkeypatch):
    bytes_of_latin_1 = io.BytesIO("café".encode("latin-1"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(bytes_of_latin_1, "utf-8", errors))
    with pytest.raises(VistokError, match=r"(?i)standard input is no text in utf-8"):
        write("-")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--drafter", "magick"], "magick"),
        (["--drafter", "medusa"], "trained for this target"),
        (["--drafter", "rasd", "--model", "text-mini-draft"], "--draft"),
        (["--drafter", "pearl", "--tree", "1"], "no trees"),
        (["--drafter", "lookup", "--tree", "99"], "before step 99"),
        (["--drafter", "eagle", "--model", "text-mini-draft"], "--draft"),
        (["--drafter", "lookup", "--draft", "text-mini-draft"], "reads no --draft"),
        (["--drafter", "none", "--draft", "text-mini-draft"], "reads no --draft"),
        (["--top-p", "0.5"], "--temperature"),
        (["--top-p", "1.5", "--temperature", "1"], "top-p"),
        (["--temperature", "inf"], "temperature"),
        (["--stop", ""], "--stop"),
        (["--new-tokens", "99999"], "text-mini"),
        (["--seed", str(1 << 64)], "64 bits"),
    ],
)
def test_what_cannot_be_is_said(words, told):
    error = run(*words).exception
    assert isinstance(error, VistokError) and told in str(error)
