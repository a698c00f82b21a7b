"""Needles and edits under policies: who finds is counted, what is read is told, and edits are what they should be."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from tests.context.tiny import tiny
from vistok import context
from vistok.cli.main import app
from vistok.data.needles import NeedleText
from vistok.errors import VistokError
from vistok.eval import needle as needles
from vistok.eval.edits import measure_edits
from vistok.eval.needle import find_needles, plot_needles
from vistok.zoo.transformers import load_text_tokenizer

CORPUS = ["for line in open(path):\n    print(line.strip())\n" * 60]


@pytest.fixture(scope="module")
def text():
    return NeedleText(load_text_tokenizer("text-mini"), CORPUS)


@pytest.fixture(scope="module")
def model():
    return tiny(layers=2, vocab_size=3072)


def knows(answers, share):
    """A decode step of a model that knows some answers: it says what follows the last word that it was given."""

    def step(model, cache, token):
        needles_known = {pair[0]: pair[1] for pair in list(answers)[: round(share * len(answers))]}
        return needles_known.get(token, -1)

    return step


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_what_is_found_is_counted_by_depth(text, model, monkeypatch, share):
    asked = []
    passage = text.passage

    def watched(*args):
        ids, found = passage(*args)
        asked.extend((int(needle.question[-1]), int(needle.answer[0])) for needle in found)
        return ids, found

    monkeypatch.setattr(text, "passage", watched)
    monkeypatch.setattr(needles, "_next", lambda *args: knows(asked[-4:], share)(*args))
    point = find_needles(model, text, context.Full(), 100, 4, 3)
    assert point.found.value == share and point.by_depth == tuple(float(n < 4 * share) for n in range(4))
    assert point.by_text == (4 * share,) * 3
    assert point.found.low == point.found.high == share  # all passages agree


@pytest.mark.parametrize(
    ("policy", "reads", "kept"),
    [
        (context.Full(), (1, 1), (1, 1)),
        (context.StreamingLLM(4, 12), (0.1, 0.2), (0.1, 0.2)),
        (context.SnapKV(32, 8), (0.25, 0.45), (0.25, 0.45)),
        (context.TidalDecode(8, start=0), (0.5, 1), (1, 1)),
        (context.TokenSelect(8, 4, 4, threshold=None), (0.5, 1), (1, 1)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_policy_answers_by_decode_steps_and_what_they_read_is_told(text, model, policy, reads, kept):
    point = find_needles(model, text, policy, 100, 2, 2, name="mine")
    assert point.policy == "mine" and point.length == 100 and 0 <= point.found.value <= 1
    assert reads[0] <= point.reads <= reads[1] and kept[0] <= point.kept <= kept[1]
    assert context.active(model) is None


def test_a_question_leaves_the_cache_as_it_was_for_the_next_one(text, model):
    again = [find_needles(model, text, context.SnapKV(32, 8), 100, count, 1).kept for count in (1, 3)]
    assert again[0] == pytest.approx(again[1], abs=0.02)


def test_points_are_drawn(text, model, tmp_path):
    points = [find_needles(model, text, context.Full(), length, 2, 1) for length in (64, 100)]
    plot_needles(points, tmp_path / "needles.png")
    assert (tmp_path / "needles.png").stat().st_size > 1000


@pytest.mark.parametrize("lengths", ["200,8", "8,200"])
def test_needles_that_fit_into_no_passage_are_told_before_the_first_is_read(monkeypatch, lengths):
    monkeypatch.setattr(needles, "finds", lambda *_: 1 / 0)
    outcome = CliRunner().invoke(app, ["eval", "needle", "--lengths", lengths, "--texts", "1"])
    assert isinstance(outcome.exception, VistokError) and "do not fit into 8 tokens" in str(outcome.exception)


def test_an_edit_of_a_model_of_one_layer_is_a_new_reading(text):
    found = measure_edits(tiny(layers=1, vocab_size=3072), text, 120, 12, 20, 2)
    assert found.change.value == pytest.approx(0, abs=1e-4)
    assert 0 < found.saved < 1 and set(found.perplexity) == {"edit", "new reading", "unedited"}
    assert found.perplexity["unedited"].value != pytest.approx(found.perplexity["edit"].value, rel=1e-5)


@pytest.mark.parametrize("inserted", [2, 40])
def test_an_insertion_that_does_not_fit_is_refused(text, model, inserted):
    with pytest.raises(VistokError, match=f"{inserted} tokens"):
        measure_edits(model, text, 120, inserted, 20, 1)


def test_the_commands_write_all_figures(tmp_path):
    runner, file = CliRunner(), str(tmp_path / "found.json")
    options = ["--policies", "full,streaming:sinks=2:window=14", "--lengths", "64", "--needles", "2", "--texts", "1"]
    assert runner.invoke(app, ["eval", "needle", *options, "--json", file]).exit_code == 0
    points = json.loads((tmp_path / "found.json").read_text())["points"]
    assert [point["policy"] for point in points] == ["full", "streaming:sinks=2:window=14"]
    assert runner.invoke(app, ["eval", "edits", "--length", "64", "--texts", "1", "--json", file]).exit_code == 0
    assert json.loads((tmp_path / "found.json").read_text())["inserted"] == 16


@pytest.mark.parametrize(
    ("options", "named"),
    [("--lengths long", "--lengths"), ("--policies ful", "full"), ("--lengths 30 --needles 8", "do not fit")],
)
def test_mistakes_are_told_in_a_sentence(options, named):
    result = CliRunner().invoke(app, ["eval", "needle", *options.split()])
    assert isinstance(result.exception, VistokError) and named in str(result.exception)


@pytest.mark.parametrize("command", [["needle", "--lengths", "64,99999"], ["edits", "--length", "99999"]])
def test_texts_longer_than_the_model_reads_are_refused(command):
    error = CliRunner().invoke(app, ["eval", *command]).exception
    assert isinstance(error, VistokError) and "text-mini" in str(error) and "shorter" in str(error)
