"""The shell completes the names that options take, and a command that is silent says that it is at work."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from tests.cli.test_habits import COMMANDS
from vistok import progress as watching
from vistok.projectors.registry import COMPRESSORS
from vistok.samplers import SAMPLERS, TEXT_DRAFTERS
from vistok.zoo import cards


def completed(path, option, incomplete=""):
    command = COMMANDS[path]
    (parameter,) = (each for each in command.params if each.name == option)
    return [
        item.value
        for item in parameter.shell_complete(command.make_context("vistok", [], resilient_parsing=True), incomplete)
    ]


def names(*tasks):
    return {name for card in cards() if card.task in tasks for name in (card.name, *card.aliases)}


PAINTERS = names("text-to-image", "class-to-image")


@pytest.mark.parametrize(
    ("path", "option", "known"),
    [
        (("sample",), "model", PAINTERS),
        (("sample",), "tokenizer", names("image-tokenizer")),
        (("sample",), "sampler", set(SAMPLERS)),
        (("bench", "samplers"), "samplers", set(SAMPLERS)),
        (("bench", "generators"), "generators", PAINTERS),
        (("tokenize",), "tokenizer", names("image-tokenizer")),
        (("compress",), "model", names("visual-question-answering")),
        (("compress",), "method", set(COMPRESSORS)),
        (("eval", "vqa"), "methods", set(COMPRESSORS)),
        (("write",), "model", names("text-generation")),
        (("write",), "drafter", set(TEXT_DRAFTERS)),
        (("models",), "name", {name for card in cards() for name in (card.name, *card.aliases)}),
        (("models",), "task", {card.task for card in cards()}),
    ],
)
def test_names_are_completed(path, option, known):
    assert set(completed(path, option)) == known != set()
    one = sorted(known)[0]
    assert one in completed(path, option, one[:3])
    assert all(name.startswith(one[:3]) for name in completed(path, option, one[:3]))


def test_the_last_of_several_names_is_completed():
    assert "ar,sjd" in completed(("bench", "samplers"), "samplers", "ar,sj")


def test_recipes_are_completed(tmp_path, monkeypatch):
    (tmp_path / "recipes").mkdir()
    for name in ("recipes/vq-mini.yaml", "mine.yaml", "notes.txt"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert completed(("train",), "recipe", "rec") == ["recipes/", "recipes/vq-mini.yaml"]
    assert completed(("train",), "recipe", "recipes/v") == ["recipes/vq-mini.yaml"]
    assert completed(("train",), "recipe", "nowhere/v") == []
    found = completed(("train",), "recipe", "")
    assert found == ["mine.yaml", "recipes/", "recipes/vq-mini.yaml"]


@pytest.fixture
def terminal(monkeypatch):
    """A terminal, and what it was shown so far."""
    outer, inner = os.openpty()
    shown = bytearray()

    def read():
        try:
            while block := os.read(outer, 1 << 16):
                shown.extend(block)
        except OSError:
            pass

    threading.Thread(target=read, daemon=True).start()
    file = os.fdopen(inner, "w", buffering=1)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(watching, "SILENCE", 0.05)
    yield file, lambda: shown.decode()
    file.close()
    os.close(outer)


def seen(shown, text, seconds=20.0):
    end = time.monotonic() + seconds
    while text not in shown() and time.monotonic() < end:
        time.sleep(0.02)
    return text in shown()


def test_a_silent_command_says_that_it_is_at_work(terminal, monkeypatch):
    file, shown = terminal
    monkeypatch.setattr(sys, "stdout", file)
    monkeypatch.setattr(sys, "stderr", file)
    with watching.busy("measure"):
        assert seen(shown, "measure")
        print("a result")
        assert seen(shown, "a result")
        before = len(shown())
        assert seen(lambda: shown()[before:], "measure")  # and again, as it goes on in silence
        with watching.progress("pictures", 2) as advance:
            advance()
            assert seen(shown, "pictures")
        watching.at_rest()
        time.sleep(0.2)
        settled = len(shown())
        time.sleep(0.3)
        assert len(shown()) == settled  # a server waits for its user
    assert sys.stdout is file


def test_nothing_is_shown_where_nobody_watches(capfd, monkeypatch):
    monkeypatch.setattr(watching, "SILENCE", 0.01)
    with watching.busy("measure"):
        time.sleep(0.2)
        print("a result")
    told = capfd.readouterr()
    assert told.out == "a result\n" and told.err == ""
