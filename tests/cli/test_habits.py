"""What every command has, and the commands that tell about vistok itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml
from PIL import Image
from typer.testing import CliRunner

from tests.cli.test_cli import vistok
from vistok.cli.main import app
from vistok.cli.shared import check_text
from vistok.doctor import examine
from vistok.errors import VistokError
from vistok.zoo import cards


def leaves(command, path=()):
    """All commands below a group, with the words that lead to them."""
    for name, each in getattr(command, "commands", {}).items():
        yield from leaves(each, (*path, name)) if hasattr(each, "commands") else [((*path, name), each)]


COMMANDS = dict(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_takes_a_file_of_options_and_can_be_quiet(path):
    options = {option for parameter in COMMANDS[path].params for option in parameter.opts}
    assert {"--config", "--quiet", "--help"} - {"--help"} <= options


def written(path, entries):
    path.write_text(entries if isinstance(entries, str) else yaml.safe_dump(entries))
    return str(path)


def test_options_come_from_a_file_and_the_command_line_counts_more(tmp_path):
    entries = {"prompt": ["a red circle", "a blue square"], "seed": 3, "out": str(tmp_path / "a.png"), "batch-size": 1}
    file = written(tmp_path / "options.yaml", entries)
    done = vistok("sample", "--config", file, "--json")
    assert done.returncode == 0 and json.loads(done.stdout)["pictures"] == 2
    other = vistok("sample", "--prompt", "a red circle", "--config", file, "--out", str(tmp_path / "b.png"), "--json")
    assert json.loads(other.stdout)["pictures"] == 1
    alone = vistok("sample", "--prompt", "a red circle", "--seed", "3", "--out", str(tmp_path / "c.png"))
    assert alone.returncode == 0
    assert Image.open(tmp_path / "b.png").tobytes() == Image.open(tmp_path / "c.png").tobytes()


def test_inputs_and_flags_come_from_a_file_too(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    entries = {"inputs": [str(tmp_path / "red.png")], "out": str(tmp_path / "red.vtok"), "json": "-"}
    done = vistok("tokenize", "--config", written(tmp_path / "t.yaml", entries))
    assert done.returncode == 0 and json.loads(done.stdout)["pictures"] == 1
    listed = vistok("models", "--config", written(tmp_path / "m.yaml", {"embedded": True, "task": "draft"}), "--json")
    assert {card["task"] for card in json.loads(listed.stdout)} == {"draft"}


@pytest.mark.parametrize(
    ("entries", "culprit"),
    [
        ({"promt": "a red circle"}, "promt.*did you mean prompt"),
        ({"seed": [1, 2]}, "seed"),
        ({"seed": {"a": 1}}, "seed"),
        ({"seed": "many"}, "seed|integer"),
        ("- a\n- b\n", "seed: 3"),
        ("a: [", "YAML"),
        ({"config": "other.yaml"}, "config"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_name(entries, culprit, tmp_path):
    refused = vistok("sample", "--config", written(tmp_path / "options.yaml", entries))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert re.search(culprit, refused.stderr)


def test_a_file_that_is_not_there_is_named(tmp_path):
    refused = vistok("models", "--config", str(tmp_path / "nowhere.yaml"))
    assert refused.returncode == 2 and "nowhere.yaml" in refused.stderr


def test_quiet_prints_results_and_errors_alone(tmp_path):
    common = ("sample", "--prompt", "a red circle", "--out", str(tmp_path / "a.png"))
    told, quiet = vistok(*common, "--sampler", "sjd", "--window", "8"), vistok(*common, "--quiet")
    assert "part of --sampler" in told.stderr and "1 picture" in told.stdout
    assert (quiet.stdout, quiet.stderr, quiet.returncode) == ("", "", 0)
    assert json.loads(vistok(*common, "--quiet", "--json").stdout)["pictures"] == 1
    assert "llamagen-mini" in vistok("models", "--quiet").stdout
    refused = vistok("sample", "--prompt", "a zebra", "--quiet")
    assert refused.returncode == 2 and "zebra" in refused.stderr
    assert "1 picture" in vistok(*common).stdout, "quiet stays for one command"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["write", "caf\udce9"], "prompt"),
        (["write", "x", "--stop", "a", "--stop", "caf\udce9"], "stop"),
        (["compress", "--model", "llava-mini", "--image", "a.png", "--question", "caf\udce9"], "question"),
        (["sample", "--prompt", "caf\udce9"], "prompt"),
    ],
)
def test_words_that_are_no_utf_8_are_refused(words, what):
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, VistokError) and f"the {what} is no text" in str(error)


def test_names_of_files_may_hold_any_bytes(tmp_path):
    check_text("model", str(tmp_path))
    (tmp_path / "caf\udce9").mkdir()
    check_text("model", str(tmp_path / "caf\udce9"))
    with pytest.raises(VistokError):
        check_text("model", str(tmp_path / "th\udce9"))


def test_models_fit_a_terminal_and_are_whole():
    lines = vistok("models").stdout.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    named = {line.split()[0] for line in lines if line and not line.startswith((" ", "`"))}
    assert {card.name for card in cards()} <= named


def test_models_are_chosen_by_task_and_told_by_name():
    drafts = vistok("models", "--task", "draft", "--embedded").stdout
    assert "text-mini-draft" in drafts and "vq-mini" not in drafts
    refused = vistok("models", "--task", "drafts")
    assert refused.returncode == 2 and "draft" in refused.stderr
    one = vistok("models", "lamagen").stdout
    assert "llamagen-mini" in one and "Apache-2.0" in one and "vq-mini" in one


def test_doctor_tells_what_is_here():
    found = examine()
    embedded = sum(card.embedded for card in cards())
    assert found.packages["weights"].startswith(f"{embedded} of {embedded}")
    assert found.machine["device"] in ("cpu", "cuda", "cuda:0") and found.kernels["fused"]


def test_doctor_names_the_command_to_type(monkeypatch):
    monkeypatch.setattr("vistok.doctor._version", lambda package: None)
    found = examine()
    assert any("pip install transformers" in line for line in found.advice)
    assert "vistok[studio]" in found.packages["gradio"]
    assert json.loads(vistok("doctor", "--json").stdout)["packages"]["gradio"] == found.packages["gradio"]


STOPPED = """
import os, signal, sys, time
from vistok.cli import samplers
from vistok.cli.main import main
from vistok.files import atomic_path

target, number = sys.argv[1:]

def work(*_):
    with atomic_path(target) as path:
        path.write_text("half")
        os.kill(os.getpid(), int(number))
        time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
samplers.check_outputs = work
sys.argv = ["vistok", "samplers"]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_command_with_a_sentence_and_nothing_half_written(tmp_path, number):
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "out.png"), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert done.returncode == 128 + number
    assert done.stderr.startswith("vistok: interrupted; ") and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


COMMAND = [sys.executable, "-c", "from vistok.cli.main import main; main()"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a place without room is one of Linux's devices")
@pytest.mark.parametrize("words", [["models"], ["samplers", "--json"]], ids=" ".join)
def test_output_that_finds_no_room_is_one_sentence(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=50)
    assert done.returncode == 2
    assert done.stderr.startswith("vistok: cannot write what is printed: ") and done.stderr.count("\n") == 1


def test_a_terminal_of_few_characters_is_no_error():
    script = "import sys; from vistok.cli import main; main.app = lambda: print('é'); main.main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, timeout=50
    )
    assert (done.returncode, done.stdout) == (0, rb"\xe9" + os.linesep.encode())
