"""The training task of text, on a corpus of a few lines."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from vistok.train.recipe import Recipe
from vistok.train.tasks import text

LINES = [f"def add_{i}(a, b):\n    return a + b * {i}\n" for i in range(40)]
SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
}


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(text, "documents", lambda split: LINES if split == "train" else LINES[:8])

    def build(**init):
        data = {"length": 16, "vocabulary": 280, "seed": 3, "eval_samples": 4}
        recipe = Recipe("tiny-text", "text", steps=1, batch_size=4, model=SHAPE, data=data, init=init)
        return text.TextTask(recipe)

    return build


def test_batches_are_a_function_of_step_and_rows_and_cover_an_epoch(make):
    task = make()
    whole = task.batch(3, slice(0, 4))["input_ids"]
    parts = [task.batch(3, slice(i, i + 2))["input_ids"] for i in (0, 2)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.shape == (4, 17)
    size = len(task.tokens) // 16 - 1
    first = [task.batch(step, slice(0, 1))["input_ids"][0] for step in range(0, 2 * size)]
    assert len({tuple(row.tolist()) for row in first}) > 1


def test_text_survives_the_tokenizer(make):
    task = make()
    assert task.tokenizer.decode(task.tokenizer(LINES[3]).input_ids) == LINES[3]
    assert int((task.tokens == task.tokenizer.eos_token_id).sum()) == len(LINES)


def test_a_trained_model_loads_in_transformers_and_teaches_a_draft_model(make, tmp_path):
    task = make()
    loss, _ = task.model(**task.batch(0, slice(0, 4)))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(torch.tensor(280.0).log().item(), rel=0.1)
    metrics = task.evaluate()
    task.export(tmp_path, metrics, 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = task.batch(0, slice(0, 2))["input_ids"]
    assert torch.allclose(model(ids).logits, task.model.lm(ids).logits, atol=1e-3)
    assert AutoTokenizer.from_pretrained(tmp_path).eos_token == text.END_OF_TEXT
    draft = make(teacher=str(tmp_path))
    assert not any(p.requires_grad for p in draft.model.teacher.parameters())
    loss, found = draft.model(**draft.batch(0, slice(0, 4)))
    loss.backward()
    assert 0 < float(found["acceptance"]) <= 1
    assert set(draft.evaluate()) == {"held_out_loss", "held_out_acceptance"}
