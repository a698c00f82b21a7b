"""The comparison of decoders: what it counts, what it reads, and what it leaves alone."""

from __future__ import annotations

import json

import pytest
import torch

from tests.samplers.tiny import prompt, tiny
from vistok.errors import VistokError
from vistok.eval.decoding import text as bench


class Letters:
    """A tokenizer that gives every character its code."""

    chat_template = None

    def __call__(self, text: str, return_tensors: str | None = None, verbose: bool = True):
        ids = [ord(letter) % 23 for letter in text]
        return type("Encoding", (), {"input_ids": torch.tensor([ids]) if return_tensors else ids})


@pytest.mark.parametrize("sampling", [False, True])
def test_all_contestants_run_and_are_counted(sampling):
    model, draft = tiny(), tiny(seed=1)
    contestants = bench.standard_contestants(model, draft, sampling)
    texts = [bench.Text("code", prompt()), bench.Text("documentation", prompt(1, 5, 1))]
    options = {"max_new_tokens": 9, "do_sample": sampling, "pad_token_id": 0}
    trials = bench.run_trials(model, draft, contestants, texts, options)
    rows = {(row.name, row.kind): row for row in bench.summarise(trials)}
    assert len(rows) == 3 * len(contestants)
    for name in ("generate", "plain"):
        assert rows[name, "all"].forwards_per_100 == pytest.approx(100)
        assert rows[name, "all"].draft_forwards_per_100 == 0
    for contestant in contestants:
        row = rows[contestant.name, "all"]
        assert row.fewer_forwards >= 1
        assert sampling or row.same == 1 or not contestant.lossless
        assert contestant.lossless != contestant.name.startswith("relaxed")
    assert "| recycling 80 | yes |" in bench.table(list(rows.values()), "code")
    assert not model._forward_pre_hooks


def test_contestants_are_chosen_by_words():
    contestants = bench.standard_contestants(tiny(), None, False)
    assert [c.name for c in bench.choose(contestants, ["recycling 8"])] == ["generate", "recycling 80", "recycling 8"]
    with pytest.raises(VistokError, match="recyclin"):
        bench.choose(contestants, ["recyclin "])


def test_held_out_prompts_have_the_length_that_was_asked_for():
    texts = bench.held_out_prompts(Letters(), 2, 40)
    assert [text.kind for text in texts] == ["code", "code", "documentation", "documentation"]
    assert all(text.ids.shape == (1, 40) for text in texts)
    again = bench.held_out_prompts(Letters(), 2, 40)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(texts, again, strict=True))


def test_spec_bench_questions(tmp_path):
    path = tmp_path / "question.jsonl"
    questions = [{"category": c, "turns": [f"{c} {i}", "and then?"]} for c in ("math", "rag") for i in range(3)]
    path.write_text("\n".join(json.dumps(q) for q in questions))
    texts = bench.spec_bench_prompts(path, Letters(), 2)
    assert [text.kind for text in texts] == ["math", "math", "rag", "rag"]
    assert texts[0].ids.tolist() == [[ord(letter) % 23 for letter in "math 0"]]
    path.write_text('{"question": 1}')
    with pytest.raises(VistokError, match="question file"):
        bench.spec_bench_prompts(path, Letters(), 2)
