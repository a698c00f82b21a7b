"""The comparison of decoders: what it counts, what it reads, and what it leaves alone."""

from __future__ import annotations

import json

import pytest
import torch

from tests.samplers.tiny import prompt, tiny
from vistok.errors import VistokError
from vistok.eval.decoding.comparison import Entry, Trial, choose_entries, table
from vistok.eval.decoding.prompts import Text, held_out_prompts, spec_bench_prompts
from vistok.eval.decoding.text import (
    ALL,
    COLUMNS,
    Continuation,
    continue_in_turn,
    counted_calls,
    summarise,
)
from vistok.eval.decoding.text_entries import standard_entries


class Letters:
    """A tokenizer that gives every character its code."""

    chat_template = None

    def __call__(self, text: str, return_tensors: str | None = None, verbose: bool = True):
        ids = [ord(letter) % 23 for letter in text]
        return type("Encoding", (), {"input_ids": torch.tensor([ids]) if return_tensors else ids})


@pytest.mark.parametrize("sampling", [False, True])
def test_all_methods_run_and_are_counted(sampling):
    model, draft = tiny(), tiny(seed=1)
    entries = standard_entries(model, draft, sampling)
    texts = [Text("code", prompt()), Text("documentation", prompt(1, 5, 1))]
    options = {"max_new_tokens": 9, "do_sample": sampling, "pad_token_id": 0}
    trials = continue_in_turn(model, draft, entries, texts, options)
    rows = {(row.name, row.kind): row for row in summarise(trials, texts)}
    assert len(rows) == 3 * len(entries)
    for name in ("generate", "plain"):
        assert rows[name, ALL].figures["forwards_per_100"] == pytest.approx(100)
        assert rows[name, ALL].figures["draft_forwards_per_100"] == 0
    for entry in entries:
        row = rows[entry.name, ALL]
        assert row.figures["fewer_forwards"].value >= 1
        assert sampling or row.figures["same"] == 1 or not entry.lossless
        assert entry.lossless != entry.name.startswith("relaxed")
    assert "| recycling 80 " in table([row for row in rows.values() if row.kind == "code"], COLUMNS)
    assert not model._forward_pre_hooks


def test_calls_are_counted_only_inside():
    model, draft = tiny(), tiny(seed=1)
    with counted_calls(model, None, draft) as calls:
        model(prompt())
        draft(prompt())
        draft(prompt())
    model(prompt())
    assert calls == [1, 0, 2]


def test_figures_are_rates_a_token():
    def trial(name, *results, seconds):
        found = Trial(Entry(name, {}))
        found.results = [Continuation(torch.tensor([[n]]), n, forwards, 0) for n, forwards in results]
        found.seconds = found.cpu_seconds = seconds
        return found

    texts = [Text("code", prompt()), Text("math", prompt())]
    plain = trial("generate", (10, 10), (10, 10), seconds=[1.0, 1.0])
    early = trial("ends early", (10, 5), (5, 5), seconds=[0.5, 0.5])
    *_, both = summarise([plain, early], texts)
    assert both.figures["same"] == 0.5
    assert both.figures["forwards_per_100"] == pytest.approx(100 * 10 / 15)
    assert both.figures["tokens_per_forward"].value == both.figures["fewer_forwards"].value == 1.5
    assert both.figures["speed_up"].value == 1.5 and both.figures["speed_up"].high == 2


def test_methods_are_chosen_by_words():
    entries = standard_entries(tiny(), None, False)
    chosen = choose_entries(entries, ["recycling 8"], "method")
    assert [entry.name for entry in chosen] == ["generate", "recycling 80", "recycling 8"]


def test_held_out_prompts_have_the_length_that_was_asked_for():
    texts = held_out_prompts(Letters(), 2, 40)
    assert [text.kind for text in texts] == ["code", "code", "documentation", "documentation"]
    assert all(text.ids.shape == (1, 40) for text in texts)
    again = held_out_prompts(Letters(), 2, 40)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(texts, again, strict=True))


def test_spec_bench_questions(tmp_path):
    path = tmp_path / "question.jsonl"
    questions = [{"category": c, "turns": [f"{c} {i}", "and then?"]} for c in ("math", "rag") for i in range(3)]
    path.write_text("\n".join(json.dumps(q) for q in questions))
    texts = spec_bench_prompts(path, Letters(), 2)
    assert [text.kind for text in texts] == ["math", "math", "rag", "rag"]
    assert texts[0].ids.tolist() == [[ord(letter) % 23 for letter in "math 0"]]
    turn = {"category": "math", "turns": ["one\u2028two"]}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(turn, ensure_ascii=False).encode() + b"\r\n\r\n")
    assert spec_bench_prompts(path, Letters(), 2)[0].ids.shape == (1, 7)
    lines = (b'{"question": 1}', b'{"category": 1, "turns": ["a"]}', b'{"category": "a", "turns": []}', b"\xff", b"")
    lines = (*lines, b'{"category": "a", "turns": [" "]}')
    for wrong in lines:
        path.write_bytes(wrong)
        with pytest.raises(VistokError, match=r"question\.jsonl"):
            spec_bench_prompts(path, Letters(), 2)
