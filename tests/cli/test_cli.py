"""The command line end to end: what a user types, what comes back, and what a mistake looks like."""

import io
import json
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest import mock

import pytest
import torch
from PIL import Image

from vistok.cli.main import main


def vistok(*arguments: str) -> subprocess.CompletedProcess:
    """The command, run inside this process: what it prints and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with mock.patch.object(sys, "argv", ["vistok", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


SEEDED = (
    ("data", "geneval", "--out", "a.jsonl"),
    ("data", "scenes", "--out", "a"),
    ("sample", "--prompt", "a red circle", "--out", "a.png"),
    ("bench", "samplers"),
    ("bench", "text"),
    ("eval", "needle"),
)


@pytest.mark.parametrize("words", SEEDED, ids=" ".join)
@pytest.mark.parametrize("seed", [1 << 64, -(1 << 63) - 1])
def test_a_seed_of_more_than_64_bits_is_refused(words, seed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = vistok(*words, "--seed", str(seed))
    assert done.returncode == 2 and "64 bits" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("sample", "--prompt", "a red circle", "--model", "", "--out", "a.png"),
        ("sample", "--prompt", "a red circle", "--tokenizer", "", "--out", "a.png"),
        ("sample", "--prompt", "a red circle", "--checkpoint", "", "--out", "a.png"),
        ("sample", "--prompt", "a red circle", "--sampler", "", "--out", "a.png"),
        ("tokenize", "b.png", "--tokenizer", ""),
        ("write", "x", "--model", ""),
        ("write", "x", "--drafter", ""),
        ("detokenize", "b.vtok", "-o", "c.png", "--tokenizer", ""),
        ("compress", "--model", "llava", "--image", "b.png", "--question", "x", "--method", ""),
    ],
    ids=" ".join,
)
def test_an_empty_name_is_refused(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("b.png")
    assert vistok("tokenize", "b.png", "-o", "b.vtok").returncode == 0
    done = vistok(*words)
    assert done.returncode == 2 and ("''" in done.stderr or "empty" in done.stderr)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.png", "b.vtok"]


def test_the_installed_command_answers_and_refuses():
    shown = subprocess.run([sys.executable, "-m", "vistok", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert "sample" in shown.stdout
    refused = subprocess.run([sys.executable, "-m", "vistok", "sample"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert refused.stderr.startswith("vistok: say what to paint")


def test_help_loads_nothing_heavy_and_shows_examples():
    code = "import sys, vistok.cli.main; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert loaded.stdout.strip() == "[]", "something heavy is imported before a command runs"
    assert "vistok sample --prompt" in vistok("sample", "--help").stdout


def test_models_lists_what_exists():
    listed = json.loads(vistok("models", "--json").stdout)
    names = {card["name"] for card in listed}
    assert {"vq-mini", "llamagen-mini", "llamagen-b-256", "llamagen-xl-t2i-512"} <= names
    assert "llamagen-mini" in vistok("models").stdout


def test_sample_paints_a_picture_and_a_grid(tmp_path):
    one = tmp_path / "one.png"
    done = vistok("sample", "--model", "lamagen", "--prompt", "a red circle", "--out", str(one), "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["pictures"] == 1
    assert summary["tokens_per_second"] > 0
    assert Image.open(one).size == (64, 64)
    grid = tmp_path / "grid.png"
    done = vistok("sample", "-p", "a red circle", "-p", "two blue squares", "--num", "2", "--out", str(grid))
    assert "4 pictures in" in done.stdout
    assert Image.open(grid).size == (130, 130)


def test_sample_fills_a_folder_and_goes_on(tmp_path):
    (tmp_path / "prompts.txt").write_text("a red circle\n\na green ring\n")
    command = ("sample", "--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "set"))
    assert vistok(*command).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == ["a red circle", "a green ring"]
    first = (tmp_path / "set" / "000000.png").read_bytes()
    (tmp_path / "set" / "000000.png").unlink()
    again = vistok(*command)
    assert "1 picture in" in again.stdout
    assert "1 were already there" in again.stdout
    assert (tmp_path / "set" / "000000.png").read_bytes() == first
    other = vistok(*command, "--seed", "1")
    assert other.returncode == 2
    assert "holds another job" in other.stderr


def test_scenes_are_written(tmp_path):
    assert vistok("data", "scenes", "--num", "3", "--out", str(tmp_path / "s")).returncode == 0
    assert len(list((tmp_path / "s").glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--prompt", "a red dragon"), "never saw 'dragon'"),
        ((), "say what to paint"),
        (("--prompt", "a red circle", "--class", "3"), "got both"),
        (("--prompt", "a red circle", "--top-k", "0"), "--top-k must be at least 1"),
        (("--prompt", "a red circle", "--top-p", "1.5"), "top-p must lie"),
        (("--prompt", "a red circle", "--temperature", "-1"), "temperature must be 0 or more"),
        (("--prompt", "a red circle", "--cfg", "inf"), "guidance scale must be a number"),
        (("--prompt", "a red circle", "--cfg-interval", "-2"), "guidance ends"),
        (("--prompt", "a red circle", "--preset", "GPT-B"), "leave the preset 'GPT-B' out"),
        (("--prompt", "a red circle", "--sampler", "sjd:windw=16"), "did you mean window"),
        (("--prompt", "a red circle", "--sampler", "sjd:window=wide"), "'auto', not 'wide'"),
        (("--prompt", "a red circle", "--sampler", "lantern:k=many"), "is a whole number, not 'many'"),
        (("--prompt", "a red circle", "--sampler", "ar:window=16"), "has no options"),
        (("--prompt", "a red circle", "--sampler", "ar", "--window", "16"), "has no options"),
        (("--prompt", "a red circle", "--promt", "x"), "did you mean --prompt"),
        (("--prompt", "a red circle", "--window"), "lacks its value"),
        (("--prompt", "a red circle", "--sampler", "mar"), "use one of ar, sjd"),
        (("--model", "mar", "--class", "3", "--sampler", "sjd"), "use one of mar, cspd"),
        (("--model", "mar", "--class", "3", "--top-k", "5"), "knows no top-k"),
        (("--model", "mar", "--class", "3", "--top-p", "0.5"), "knows no top-p"),
        (("--model", "mar", "--class", "3", "--cfg-interval", "5"), "knows no guidance-interval"),
        (("--model", "mar", "--class", "3", "--tokens", "5"), "has no --tokens"),
        (("--model", "mar", "--class", "3", "--sampler", "mar:head_steps=1001"), "2 to 1000 steps"),
        (("--model", "mar", "--class", "3", "--text-encoder", "t5"), "has no --text-encoder"),
        (("--model", "mar", "--class", "3", "--sampler", "cspd", "--temperature", "0"), "above 0"),
        (("--prompt", "a red circle", "--num", "0"), "at least 1"),
        (("--prompt", "a red circle", "--batch-size", "0"), "at least 1"),
        (("--prompt", "a red circle", "--sampler", "arr"), "did you mean ar"),
        (("--prompt", "a red circle", "--model", "lamagn"), "did you mean"),
        (("--prompt", "a red circle", "--size", "7"), "not a multiple of 4"),
        (("--class", "3"), "paints prompts, not classes"),
        (("--prompts", "nowhere.txt"), "cannot read the prompts in 'nowhere.txt': No such file"),
        (("--prompts", "/dev/null"), "there is no prompt in '/dev/null'"),
        (("--prompt", "a red circle", "--checkpoint", "nowhere/x.pt"), "no file or folder"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path, arguments, sentence):
    done = vistok("sample", *arguments, "--out", str(tmp_path / "out.png"))
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        pytest.param({"model": Hostile()}, "could run code", id="hostile"),
        pytest.param(b"PK\x03\x04 cut off", "truncated", id="cut-off"),
        pytest.param({"model": {"tok_embeddings.weight": torch.zeros(3, 3)}}, "not a GPT-B", id="other-model"),
    ],
)
def test_bad_checkpoints_get_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "c2i_B_256.pt"  # the smallest of the published shapes: a network is built for each
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    done = vistok("sample", "--class", "3", "--checkpoint", str(path), "--tokenizer", "vq-mini")
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_unwritable_places_are_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    done = vistok("sample", "--prompt", "a red circle", "--out", str(tmp_path / "file" / "out.png"))
    assert done.returncode == 2
    assert "cannot write" in done.stderr


def test_former_options_of_samplers_still_work_and_say_what_they_are_now(tmp_path):
    arguments = ("sample", "--prompt", "a red circle", "--tokenizer", "flextok", "--tokens", "8", "--seed", "3")
    now = vistok(*arguments, "--sampler", "sjd:window=4:init=repeat-left", "--out", str(tmp_path / "now.png"))
    former = vistok(
        *arguments, "--sampler", "sjd", "--window", "4", "--init=repeat-left", "--out", str(tmp_path / "former.png")
    )
    assert now.returncode == former.returncode == 0, former.stderr
    assert (tmp_path / "now.png").read_bytes() == (tmp_path / "former.png").read_bytes()
    assert "--sampler sjd:window=4" in former.stderr and not now.stderr


def test_temperature_zero_takes_the_most_likely_tokens(tmp_path):
    arguments = ("sample", "--prompt", "a red circle", "--tokenizer", "flextok", "--tokens", "8")
    for name, options in (("zero", ("--temperature", "0")), ("one", ("--top-k", "1"))):
        assert vistok(*arguments, *options, "--seed", "1", "--out", str(tmp_path / f"{name}.png")).returncode == 0
    assert (tmp_path / "zero.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_a_line_of_a_prompt_file_is_a_prompt(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa red circle\r\n\na red circle left of\xe2\x80\xa8a blue\x0bsquare\n")
    arguments = ("sample", "--tokenizer", "flextok", "--tokens", "1", "--prompts", str(file))
    assert vistok(*arguments, "--out", str(tmp_path / "set")).returncode == 0
    lines = [json.loads(line)["text"] for line in (tmp_path / "set" / "metadata.jsonl").read_text().split("\n") if line]
    assert lines == ["a red circle", "a red circle left of\u2028a blue\x0bsquare"]


def test_samplers_lists_every_sampler_with_its_options():
    listed = {entry["name"]: entry["options"] for entry in json.loads(vistok("samplers", "--json").stdout)}
    assert listed["sjd"] == {"window": 16, "init": "repeat-up", "variant": "coupled"}
    assert "mar:iterations=64" in vistok("samplers").stdout


@pytest.mark.parametrize("by", ["nearest", "lanczos"])
def test_pictures_are_written_larger(by, tmp_path):
    common = ("sample", "--prompt", "a red circle", "--seed", "3", "--out")
    assert vistok(*common, str(tmp_path / "one.png")).returncode == 0
    done = vistok(*common, str(tmp_path / "large.png"), "--upscale", "3", "--upscale-by", by)
    assert done.returncode == 0, done.stderr
    small, large = Image.open(tmp_path / "one.png"), Image.open(tmp_path / "large.png")
    assert large.size == (192, 192)
    assert by != "nearest" or large.resize((64, 64), Image.Resampling.NEAREST).tobytes() == small.tobytes()
    assert vistok(*common, str(tmp_path / "grid.png"), "-n", "2", "--upscale", "2").returncode == 0
    assert Image.open(tmp_path / "grid.png").size == (258, 128)


@pytest.mark.parametrize(
    ("option", "culprit"), [(("9",), "9"), (("1",), "1"), (("2", "--upscale-by", "cubic"), "cubic")]
)
def test_an_impossible_enlargement_is_refused_before_anything_is_drawn(option, culprit, tmp_path):
    refused = vistok("sample", "--prompt", "a red circle", "--out", str(tmp_path / "a.png"), "--upscale", *option)
    assert refused.returncode == 2 and culprit in refused.stderr


def test_a_folder_of_pictures_keeps_to_one_size(tmp_path):
    common = ("sample", "--prompt", "a red circle", "--out", str(tmp_path / "set"))
    assert vistok(*common, "--upscale", "2").returncode == 0
    assert Image.open(tmp_path / "set" / "000000.png").size == (128, 128)
    other = vistok(*common)
    assert other.returncode == 2 and "upscale" in other.stderr
