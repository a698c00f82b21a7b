"""Training tasks of the KV cache: what learns, what stays, and that what they write can be used."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.train.tiny import pure_batch, texts, tiny
from vistok import context
from vistok.context.augmentation import load_coprocessor
from vistok.errors import VistokError
from vistok.train.tasks import build_task, text


@pytest.fixture(autouse=True)
def corpus(monkeypatch):
    monkeypatch.setattr(text, "documents", texts)


def trained(case: str, folder, **shape):
    """A task after one step, with its weights in a folder."""
    recipe = tiny(case)
    task = build_task(replace(recipe, model=recipe.model | shape))
    batch = pure_batch(task)
    before = {name: value.clone() for name, value in task.model.lm.state_dict().items()}
    learning = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    loss, _ = task.model.train()(**batch)
    loss.backward()
    torch.optim.SGD(learning, lr=0.1).step()
    assert all(parameter.grad is not None for parameter in learning)
    assert all(torch.equal(value, before[name]) for name, value in task.model.lm.state_dict().items())
    task.export(folder, {"held_out_loss": float(loss.detach())}, 1)
    assert json.loads((folder / "card.json").read_text())["parts"] == {"target": "text-mini"}
    return task


def test_convolutions_learn_beside_a_frozen_model_and_load(tmp_path):
    task = trained("text-mini-lococo", tmp_path)
    mixing = context.Mixing(**json.loads((tmp_path / "config.json").read_text()))
    again = context.LoCoCo(weights=tmp_path / "model.safetensors", mixing=mixing)
    again.prepare(task.model.lm)
    for one, two in zip(task.policy.savers.parameters(), again.savers.parameters(), strict=True):
        assert torch.allclose(one, two, atol=2e-3)


def test_what_learns_is_measured_beside_its_rivals_on_the_same_passages():
    task = build_task(tiny("text-mini-lococo"))
    found = task.evaluate()
    whole = found["held_out_loss_whole_cache"]
    assert found["held_out_loss"] != found["held_out_loss_heavy_hitters"] != whole
    task.mixing = replace(task.mixing, memory=300)  # room for all: nothing is dropped
    assert task.evaluate()["held_out_loss_heavy_hitters"] == pytest.approx(whole, abs=1e-4)


@pytest.mark.parametrize("repeats", [False, True])
def test_a_coprocessor_learns_beside_a_frozen_model_and_loads(tmp_path, repeats):
    task = trained("text-mini-augmentation", tmp_path, repeats=repeats)
    again = load_coprocessor(task.model.lm, tmp_path)
    for one, two in zip(task.model.coprocessor.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, two, atol=2e-3)
    state = task.model.lm.state_dict()
    (tmp_path / "config.json").write_text(json.dumps({"latents": 3, "repeats": repeats}))
    with pytest.raises(VistokError, match="soft"):
        load_coprocessor(task.model.lm, tmp_path)
    assert all(torch.equal(value, state[name]) for name, value in task.model.lm.state_dict().items())


def test_sources_of_packages_are_learnt_from_and_evaluated_on_apart():
    recipe = tiny("text-mini-augmentation")
    alone, both = (
        build_task(replace(recipe, data=recipe.data | {"packages": names})) for names in ([], ["accelerate"])
    )
    assert len(both.tokens) > len(alone.tokens)
    both.model.eval(), alone.model.eval()
    found, plain = both.evaluate(), alone.evaluate()
    assert {name: found[name] for name in plain} == pytest.approx(plain, abs=1e-5)
    assert set(found) - set(plain) == {"held_out_loss_accelerate", "held_out_gain_accelerate"}
    assert found["held_out_gain_accelerate"] == pytest.approx(0, abs=1e-4)  # nothing is learnt, and nothing lost


@pytest.mark.parametrize(
    ("case", "entries", "named"),
    [
        ("text-mini-augmentation", {"packages": ["no_such_package"]}, "no_such_package"),
        ("text-mini-lococo", {"length": 64}, "two chunks"),
        ("text-mini-augmentation", {"length": 20, "points": 8}, "8 points"),
    ],
)
def test_lengths_that_leave_nothing_to_learn_are_refused(case, entries, named):
    recipe = tiny(case)
    with pytest.raises(VistokError, match=named):
        build_task(replace(recipe, data=recipe.data | entries))
