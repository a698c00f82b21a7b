"""The training task of EAGLE-3 drafters of text: unrolled steps are those of drafting, and what it writes drafts."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.samplers import EagleHead, generate
from vistok.train.recipe import Recipe
from vistok.train.tasks import eagle3, text
from vistok.zoo.transformers import load_causal_lm

LINES = [f"def add_{i}(a, b):\n    return a + b * {i}\n" for i in range(120)]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "draft_vocab_size": 96,
    "aux_layers": [1, 2, 3],
}


@pytest.fixture
def build(monkeypatch):
    """A task of the tiny shape, with entries of ``data``."""
    for module in (eagle3, text):
        monkeypatch.setattr(module, "documents", lambda split: LINES if split == "train" else LINES[:40])

    def build(**data) -> eagle3.Eagle3Task:
        data = {"length": 20, "seed": 3, "steps": 3, "eval_samples": 4} | data
        recipe = Recipe("tiny", "eagle3", steps=1, batch_size=2, model=SHAPE, data=data, init={"target": "text-mini"})
        return eagle3.Eagle3Task(recipe)

    return build


@pytest.fixture
def task(build):
    return build()


def test_unrolled_steps_are_those_of_drafting(task):
    """Step by step over a cache, as the golden cases draft: the same states as one pass under the training's mask."""
    drafter, width = task.model.drafter.eval(), 6
    states, tokens = torch.randn(1, width, 3 * 320), torch.randint(3072, (1, width + 2))
    with torch.no_grad():
        cache = drafter.new_cache(1, 3 * width)
        first = drafter(states, tokens[:, :width], cache)
        cache.advance(width)
        seen = torch.cat([torch.ones(width, width).tril(), torch.eye(width)], 1).bool()
        slots = torch.arange(width)[None]
        wanted = drafter(first, tokens[:, 1 : width + 1], cache, slots + 1, seen[None])
        fed = torch.cat([drafter.read(states), first], 1)
        both = torch.cat([tokens[:, :width], tokens[:, 1 : width + 1]], 1)
        mask = eagle3.unrolled_mask(width, 2)
        found = drafter(fed, both, slots=torch.cat([slots, slots + 1], 1), visible=mask)
    torch.testing.assert_close(found[:, :width], first)
    torch.testing.assert_close(found[:, width:], wanted)


def test_it_learns_and_what_it_writes_drafts(task, tmp_path):
    optimizer = torch.optim.AdamW([p for p in task.model.drafter.parameters() if p.requires_grad], lr=3e-3)
    batch, losses = task.batch(0, slice(0, 4)), []
    for _ in range(12):
        loss, metrics = task.model(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert set(metrics) == {"acceptance_1", "acceptance_2", "acceptance_3"}
    task.export(tmp_path, task.evaluate(), 12)
    model, tokenizer = load_causal_lm("text-mini")
    loaded = Eagle3Network.from_pretrained(tmp_path)
    assert loaded.config.aux_layers == (1, 2, 3)
    prompt = tokenizer(LINES[0], return_tensors="pt")
    options = {"max_new_tokens": 12, "do_sample": False}
    found = generate(model, prompt, EagleHead(loaded), **options)
    assert torch.equal(found.sequences, model.generate(**prompt, **options))


def test_samples_end_in_the_targets_own_continuation_where_asked(build):
    task = build(continuation=8, passages=6)
    found = task.batch(0, slice(0, 2))["input_ids"]
    law = task.model.target(found).logits.argmax(-1)
    assert torch.equal(law[:, -9:-1], found[:, -8:])


def test_an_epoch_holds_every_passage_once(build):
    task = build(continuation=8, passages=6)
    wanted = sorted(map(tuple, task.continued.tolist()))
    epochs = [torch.cat([task.batch(3 * e + i, slice(0, 2))["input_ids"] for i in range(3)]) for e in range(2)]
    assert [sorted(map(tuple, each.tolist())) for each in epochs] == [wanted, wanted]
    assert not torch.equal(*epochs)


def test_the_drafted_vocabulary_is_what_the_target_continues_with(build):
    task = build(continuation=8, passages=6)
    assert task.model.drafter.t2d[task.continued[:, -8:]].all()


def test_continuations_without_passages_are_refused(build):
    with pytest.raises(VistokError, match="passages"):
        build(continuation=8)
