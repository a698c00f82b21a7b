"""Tasks of long texts: passages that grow, what a policy or left-out tokens change, and that what they write loads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.tiny import RECIPES, texts, tiny
from vistok import context
from vistok.errors import VistokError
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task, text
from vistok.train.tasks.needles import ROOM
from vistok.zoo.transformers import load_causal_lm


@pytest.fixture(autouse=True)
def corpus(monkeypatch):
    monkeypatch.setattr(text, "documents", texts)


def of(case: str, **sections):
    """A recipe of the repository at a test's size, with other entries in its sections."""
    recipe = tiny(case)
    if recipe.task == "long-text":
        recipe = replace(recipe, data=recipe.data | {"length": 96})
    return replace(recipe, **{name: getattr(recipe, name) | entries for name, entries in sections.items()})


def logits(model):
    return model(input_ids=torch.arange(30)[None], use_cache=False).logits


def stepped(task):
    """The task after one step of its optimizer."""
    loss, metrics = task.model.train()(**task.batch(0, slice(0, 2)))
    loss.backward()
    learning = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in learning)
    torch.optim.SGD(learning, lr=0.1).step()
    task.model.eval()
    return loss, metrics


def test_passages_grow_by_stage_and_processes_share_them():
    task = build_task(of("text-mini-long"))
    shapes = [{name: tuple(value.shape) for name, value in task.batch(step, slice(0, 4)).items()} for step in (1, 2)]
    assert shapes[0] == {"input_ids": (4, 64), "places": (4, 4), "others": (4, 32), "weights": (4,)}
    assert shapes[1] == {"input_ids": (2, 96), "places": (2, 6), "others": (2, 48), "weights": (2,)}
    halves = [task.batch(0, slice(at, at + 2))["input_ids"] for at in (0, 2)]
    assert not torch.equal(*halves)


def test_far_needles_continue_the_run_of_growing_passages():
    first, then = (Recipe.load(RECIPES / f"{name}.yaml") for name in ("text-mini-long", "text-mini-long-far"))
    stages = first.data["stages"]
    assert then.data == first.data | {"stages": [*stages, then.data["stages"][-1]]} and then.steps > first.steps
    assert replace(then.optimization, final_lr=first.optimization.final_lr) == first.optimization
    same = ("task", "seed", "batch_size", "precision", "model", "init")
    assert all(getattr(first, name) == getattr(then, name) for name in same)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}], ids=["all weights", "lora"])
def test_a_model_that_learns_to_read_back_loads(tmp_path, lora):
    task = build_task(of("text-mini-long", model={"lora": lora} if lora else {}))
    _, metrics = stepped(task)
    assert set(metrics) == {"needle_loss", "found", "text_loss"}
    task.export(tmp_path, {}, 1)
    model, tokenizer = load_causal_lm(tmp_path)
    assert torch.allclose(logits(model), logits(task.model.lm), atol=0.05)
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 96 + ROOM
    assert model.config.rope_parameters["rope_theta"] == 500_000
    assert set(task.evaluate()) == {f"{name}_{length}" for name in ("found", "held_out_loss") for length in (64, 96)}


@pytest.mark.parametrize("model", [{}, {"policy": "full"}], ids=["core", "full"])
def test_what_is_learnt_under_a_policy_is_measured_under_it_and_with_all_keys(tmp_path, model):
    task = build_task(of("text-mini-core", model={"policy": "core:group=4:window=16"} | model))
    stepped(task)
    found = task.evaluate()
    assert (found["held_out_loss"] == pytest.approx(found["held_out_loss_all_keys"], abs=1e-4)) is bool(model)
    task.export(tmp_path, found, 1)
    assert context.active(task.model.lm) is not None
    with context.active(task.model.lm).paused():
        assert torch.allclose(logits(load_causal_lm(tmp_path)[0]), logits(task.model.lm), atol=0.05)


@pytest.mark.parametrize("chance", [False, True])
def test_left_out_tokens_save_memory_in_training_and_leave_evaluation_whole(chance):
    few = {"share": 0.25, "layers": [1, 2], "block": 8, "chance": chance}
    task, plain = (build_task(of("text-mini-lemo", model={"involved": each})) for each in (few, None))
    for each in (task, plain):
        each.model.eval()
    figures, whole = task.evaluate(), plain.evaluate()
    assert figures["held_out_loss"] == pytest.approx(whole["held_out_loss"], abs=1e-5)
    assert figures["saved_bytes"] < 0.8 * figures["saved_bytes_of_all"] and "saved_bytes" not in whole
    assert stepped(task)[0].item() != pytest.approx(stepped(plain)[0].item(), rel=1e-4)


def test_loss_in_segments_is_that_of_the_whole():
    all_of = {"share": 1.0, "layers": [1], "segment": 17}
    one, two = (build_task(of("text-mini-lemo", model={"involved": each})) for each in (all_of, None))
    assert stepped(one)[0].item() == pytest.approx(stepped(two)[0].item(), rel=1e-4)


@pytest.mark.parametrize(
    ("case", "sections", "named"),
    [
        ("text-mini-long", {"data": {"stages": [{"length": 64, "needles": 2, "steps": 3, "times": 1}]}}, "twice"),
        ("text-mini-long", {"data": {"stages": [{"length": 64, "needles": 2, "steps": 7}]}}, "7 steps"),
        ("text-mini-long", {"data": {"stages": [{"length": 64, "needles": 2, "step": 3}]}}, "step"),
        ("text-mini-core", {"model": {"policy": "streaming"}}, "streaming"),
        ("text-mini-core", {"model": {"policy": "cora"}}, "core"),
        ("text-mini-lemo", {"model": {"involved": {"share": 0.5, "layers": [9]}}}, "no layer 9"),
    ],
)
def test_mistakes_in_recipes_are_told_before_training(case, sections, named):
    with pytest.raises(VistokError, match=named):
        task = build_task(of(case, **sections))
        task.model.train()(**task.batch(0, slice(0, 1)))
