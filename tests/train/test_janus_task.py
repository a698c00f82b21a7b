"""The training task of the model in Janus's layout: what it exports is what transformers and vistok load."""

from __future__ import annotations

import pytest
import torch

import vistok
from vistok.data.scenes import COLOURS
from vistok.errors import VistokError
from vistok.pipelines import pipeline
from vistok.samplers import Autoregressive
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def task():
    data = {"seed": 61, "scenes": 8, "size": 16, "eval_scenes": 2}
    recipe = Recipe("tiny-janus", "janus", 1, 4, model=SHAPE, data=data, init={"tokenizer": "vq-mini"}, guidance=2.0)
    return build_task(recipe)


def test_batches_are_a_function_of_step_and_rows_and_each_pass_words_anew(task):
    whole, half = task.batch(1, slice(0, 4)), task.batch(1, slice(2, 4))
    assert torch.equal(whole["tokens"][2:], half["tokens"])
    assert torch.equal(whole["tokens"], task.batch(3, slice(0, 4))["tokens"])
    assert not torch.equal(whole["input_ids"], task.batch(3, slice(0, 4))["input_ids"])


def test_the_tokenizer_in_the_class_is_the_embedded_one(task):
    codes = task.batch(0, slice(0, 2))["tokens"]
    painted = task.model.janus.decode_image_tokens(codes).permute(0, 3, 1, 2)
    assert torch.allclose(painted, task.vq.decode(codes.unflatten(1, (4, 4))), atol=1e-4)
    found = task.model.janus.model.vqmodel.encode(painted).image_tokens
    assert torch.equal(found.view(-1), task.vq.encode(painted).view(-1))


def test_the_objective_is_what_generate_draws_from(task, tmp_path):
    """An export, loaded with its tokenizer, draws by ``generate`` what a pipeline draws with the same parameters."""
    task.export(tmp_path, task.evaluate(), 1)
    assert not any("vqmodel" in key for key in _keys(tmp_path))
    pipe = pipeline(str(tmp_path), device="cpu")
    assert pipe.guidance == 2.0
    drawn = pipe("a red circle", params=pipe.sampling_params(temperature=0)).tokens
    inputs = task.processor(text=["a red circle"], generation_mode="image", return_tensors="pt")
    model = pipe.model.network
    arguments = {**inputs, "generation_mode": "image", "do_sample": False, "guidance_scale": 2.0}
    assert torch.equal(model.generate(**arguments), drawn)
    with vistok.accelerate(model, Autoregressive()):
        assert torch.equal(model.generate(**arguments), drawn)
    logits = task.model.janus.float() and task.model.logits(inputs["input_ids"], inputs["attention_mask"], drawn)
    untold = task.model.untold(inputs["input_ids"])
    guided = 2 * logits - task.model.logits(untold, inputs["attention_mask"], drawn)
    assert torch.equal(guided.argmax(-1), drawn)


def _keys(folder):
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "pt") as file:
        return list(file.keys())


SUPERVISED = {"now": 0.2, "left": 0.1, "next": 0.03, "told": 0.1, "colour": 4.0}


def supervised(**more):
    data = {"seed": 61, "scenes": 40, "size": 16, "eval_scenes": 8, "objects": 1, "coloured": True}
    data |= {"supervision": SUPERVISED} | more.pop("data", {})
    init = {"tokenizer": "vq-mini"} | more
    return Recipe("tiny-janus", "janus", 1, 4, model=SHAPE, data=data, init=init, guidance=2.0)


def test_supervision_tells_of_the_scenes_that_are_drawn():
    task = build_task(supervised())
    assert int(task.scenes.present.sum(1).max()) == 1
    assert len(task.scenes) == 40
    task.model.train()
    batch = task.batch(0, slice(0, 4))
    words = task.processor.tokenizer.batch_decode(batch["input_ids"])
    assert all(any(colour in line for colour in COLOURS) for line in words)
    loss, parts = task.model(**batch)
    assert parts.keys() == {"codes", *SUPERVISED}
    expected = parts["codes"] + sum(weight * parts[name] for name, weight in SUPERVISED.items())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert task.model.janus.model.language_model.embed_tokens.weight.grad.abs().sum() > 0


def test_captions_that_are_taken_away_are_not_read_for_facts():
    task = build_task(supervised(data={"dropout": 1.0}))
    task.model.train()
    assert task.model(**task.batch(0, slice(0, 4)))[1].keys() == {"codes", "colour"}


def test_a_run_goes_on_from_an_export(tmp_path):
    first = build_task(supervised())
    first.export(tmp_path, {"held_out_loss": 1.0}, 1)
    second = build_task(supervised(janus=str(tmp_path)))
    own = second.model.janus.state_dict()
    for name, value in first.model.janus.float().state_dict().items():
        if "vqmodel" not in name:  # which the export leaves out, and halved here
            assert torch.equal(own[name], value), name
    assert second.model.janus.model.language_model.embed_tokens.weight.requires_grad
    assert not second.model.janus.model.vqmodel.quantize.embedding.weight.requires_grad


def test_what_a_recipe_cannot_ask_for():
    with pytest.raises(VistokError, match="colur"):
        build_task(supervised(data={"supervision": {"colur": 1.0}}))
    with pytest.raises(VistokError, match="objects"):
        build_task(supervised(data={"objects": 0}))
