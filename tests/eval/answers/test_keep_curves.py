"""``vistok eval vqa``: points add up, files are read, mistakes are told."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.train.small_llava import small_llava
from vistok.errors import VistokError
from vistok.eval.answers.ask import load
from vistok.eval.answers.keep_curves import (
    Asked,
    _mean,
    keep_curves,
    method_names,
    parse_shares,
    read_questions,
    scene_questions,
)
from vistok.eval.answers.scorers import exact_match
from vistok.projectors import COMPRESSORS, Uniform, compress
from vistok.projectors.cost import prefill_flops


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_llava(tmp_path_factory.mktemp("small"))


def test_all_methods_at_all_shares(folder):
    model, processor = load(folder, "cpu")
    asked = scene_questions(64, 2, 2)
    points = keep_curves(model, processor, asked, method_names("all"), [1.0, 0.25], exact_match, 4, 2)
    assert points[0].method == "all"
    assert points[0].visual_tokens == 64
    config = model.config.get_text_config()
    by_name = {point.method: point for point in points[1:]}
    assert set(by_name) == {name for name, kind in COMPRESSORS.items() if not (kind.trained or kind.temporal)}
    for name, point in by_name.items():
        assert 0 <= point.accuracy <= 1
        assert point.prefill_flops < points[0].prefill_flops
        assert point.cache_bytes < points[0].cache_bytes
        assert point.prefill_seconds > 0
        low, high = point.interval
        assert low <= point.accuracy <= high
        if point.keep is not None and name not in ("prumerge", "sparsevlm"):  # more by merging; by budget
            assert point.visual_tokens == 16
    spared = by_name["uniform"]
    lengths = [len(processor.tokenizer(a.question)["input_ids"]) + 2 + 16 for a in asked]  # "user:", "assistant:"
    assert spared.prefill_flops == pytest.approx(sum(prefill_flops(config, n) for n in lengths) / 4)


def test_a_model_that_ignores_the_answer_scores_nothing(folder):
    """Accuracy follows the scorer: an impossible answer gives 0, whatever is said gives 1."""
    model, processor = load(folder, "cpu")
    picture = Image.new("RGB", (64, 64), "gray")
    wrong = [Asked(picture, "is there a circle?", ("no such word",), "exists")] * 2
    assert keep_curves(model, processor, wrong, ["uniform"], [0.5], exact_match, 2, 1)[1].kinds == {"exists": 0.0}
    anything = keep_curves(model, processor, wrong, ["uniform"], [0.5], lambda *_: 1.0, 2, 1)
    assert [point.accuracy for point in anything] == [1.0, 1.0]


def test_a_compressed_model_is_measured_as_it_is(folder):
    model, processor = load(folder, "cpu")
    asked = scene_questions(64, 1, 1)
    with compress(model, Uniform(keep=8)):
        (point,) = keep_curves(model, processor, asked, [], [1.0], exact_match, 1, 1)
        with pytest.raises(VistokError, match="--methods none"):
            keep_curves(model, processor, asked, ["random"], [0.5], exact_match, 1, 1)
    assert point.visual_tokens == 8


def test_shares_and_names():
    assert parse_shares("100,25,50%") == [1.0, 0.5, 0.25]
    assert method_names("fastv, random") == ["fastv", "random"]
    assert method_names("none") == []
    assert parse_shares("0.5%") == [0.005]
    for text in ("0", "120", "half", "", "1e400"):
        with pytest.raises(VistokError, match="per cent"):
            parse_shares(text)
    with pytest.raises(VistokError, match=r"write 25 for that share, or 0\.25%"):
        parse_shares("1,0.25")
    with pytest.raises(VistokError, match="did you mean"):
        method_names("fast")
    with pytest.raises(VistokError, match="trained"):
        method_names("tokenpacker")


def test_questions_from_a_file(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    lines = [{"image": "a.png", "question": "what?", "answers": ["x", "y"]}, {"image": "a.png", "question": "why?"}]
    (tmp_path / "q.jsonl").write_text(json.dumps(lines[0]) + "\n\n")
    (asked,) = read_questions(tmp_path / "q.jsonl")
    assert asked.answers == ("x", "y")
    assert asked.picture.size == (8, 8)
    (tmp_path / "bad.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(VistokError, match="line 2"):
        read_questions(tmp_path / "bad.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(VistokError, match="empty"):
        read_questions(tmp_path / "empty.jsonl")
    with pytest.raises(VistokError, match="cannot read"):
        read_questions(tmp_path / "none.jsonl")


def test_questions_about_one_file_are_one_unit_of_the_interval(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    lines = [{"image": name, "question": "?", "answer": "x"} for name in ("a.png", "./a.png", "b.png", "b.png")] * 20
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    asked = read_questions(tmp_path / "q.jsonl")
    right = [{"scores": [float("a" in line["image"][:3]) for line in lines], "kinds": {}}]
    found = _mean(right, asked)
    assert len({id(each.picture) for each in asked}) == 2
    assert found["accuracy"] == 0.5 and found["interval"] == (0, 1)  # of two pictures, not of eighty


@pytest.mark.parametrize(
    ("answers", "told"),
    [("yes", ("yes",)), (3, ("3",)), (["a", 2], ("a", "2")), (None, "None"), ([], "no answers"), ([["a"]], "a")],
)
def test_answers_are_texts_or_the_line_is_named(tmp_path, answers, told):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "q.jsonl").write_text(json.dumps({"image": "a.png", "question": "what?", "answers": answers}))
    if isinstance(told, tuple):
        assert read_questions(tmp_path / "q.jsonl")[0].answers == told
    else:
        with pytest.raises(VistokError, match=f"line 1.*{told}"):
            read_questions(tmp_path / "q.jsonl")


def test_lines_of_questions_end_where_those_of_other_files_do(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = json.dumps({"image": "a.png", "question": "one\u2028two", "answer": "x"}, ensure_ascii=False)
    (tmp_path / "q.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    assert read_questions(tmp_path / "q.jsonl")[0].question == "one\u2028two"
    (tmp_path / "q.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(VistokError, match="UTF-8"):
        read_questions(tmp_path / "q.jsonl")


def test_command(folder, tmp_path):
    from vistok.cli.eval import app

    torch.manual_seed(0)
    out, plot = tmp_path / "points.json", tmp_path / "curves.png"
    asked = ["vqa", "--model", folder, "--scenes", "2", "--per-scene", "1", "--max-new-tokens", "1"]
    run = CliRunner().invoke(
        app, [*asked, "--methods", "vtc-cls,prumerge", "--keep", "100,25", "--json", str(out), "--plot", str(plot)]
    )
    assert run.exit_code == 0, run.exception
    points = json.loads(out.read_text())
    assert [(p["method"], p["keep"]) for p in points] == [("all", 1.0), ("vtc-cls", 0.25), ("prumerge", 0.25)]
    assert "vtc-cls" in run.stdout
    assert Image.open(plot).size == (900, 540)
    failed = CliRunner().invoke(app, [*asked, "--scorer", "exakt"])
    assert "unknown scorer" in str(failed.exception)
