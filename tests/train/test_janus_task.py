"""The training task of the model in Janus's layout: what it exports is what transformers and vistok load."""

from __future__ import annotations

import pytest
import torch

import vistok
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
