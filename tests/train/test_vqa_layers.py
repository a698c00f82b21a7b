"""Mixtures of depths and concentric reading: what is trained is what loads."""

from __future__ import annotations

import pytest
import torch

from tests.train.small_llava import assert_asked_alone, small_llava
from vistok.data.images import to_pil
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.vqa import draw_questions, question_tokens
from vistok.eval.answers.ask import load
from vistok.projectors.apply.compress import active
from vistok.projectors.apply.concentric import concentric_of
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task

pytest.importorskip("peft")
LORA = {"rank": 2, "alpha": 4, "modules": ["q_proj", "down_proj"]}
KINDS = {
    "vqa-pmod": {"lora": LORA},
    "vqa-concentric": {"lora": LORA},
    "plain": {"lora": LORA, "concentric": False},
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return small_llava(tmp_path_factory.mktemp("start"))


def build(kind, start):
    data = {"seed": 1, "questions": 2, "eval_pictures": 8, "kinds": {"relation": 1.0, "object": 1.0}, "small": 0.5}
    task = "vqa-concentric" if kind == "plain" else kind
    built = build_task(
        Recipe(name="s", task=task, steps=1, batch_size=2, model=KINDS[kind], data=data, init={"llava": start})
    )
    generator = torch.Generator().manual_seed(4)
    for name, parameter in built.model.named_parameters():
        if parameter.requires_grad and ("lora_B" in name or "router" in name):
            parameter.data = torch.randn(parameter.shape, generator=generator).bfloat16().float() * 0.5
        elif parameter.requires_grad:
            parameter.data = parameter.data.bfloat16().float()
    return built


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_trained_is_what_loads(kind, start, tmp_path):
    task = build(kind, start)
    scenes = sample_scenes(2, 9)
    drawn = draw_questions(scenes, 2)
    questions, _ = question_tokens(drawn)
    pixels = render(scenes, 64)
    with torch.no_grad():
        packed = task.model.answer_logits(pixels, questions)
    task.export(tmp_path, {"exact_match": 0.0}, 1)
    model, processor = load(str(tmp_path), "cpu")
    assert (active(model) is not None) == (kind == "vqa-pmod")
    assert (concentric_of(model) is not None) == (kind == "vqa-concentric")
    assert_asked_alone(model, processor, to_pil(pixels), pixels, drawn, questions, packed, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_reaches_what_is_trained(kind, start):
    task = build(kind, start)
    loss, _ = task.model(**task.batch(0, slice(0, 2)))
    loss.backward()
    trained = [name for name, p in task.model.named_parameters() if p.requires_grad]
    assert all("lora" in name or "router" in name for name in trained if task.model.get_parameter(name).numel())
    assert not [name for name, p in task.model.named_parameters() if p.requires_grad and p.numel() and p.grad is None]
    assert 0 <= task.evaluate()["exact_match"] <= 1
