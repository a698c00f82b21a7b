"""Bottleneck adapters: nothing at first, the only thing that is trained, and loaded as they were saved."""

from __future__ import annotations

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaModel

from vistok.errors import VistokError
from vistok.models.bottleneck import add_bottlenecks, bottleneck_state, load_bottlenecks

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3}


def llama():
    torch.manual_seed(0)
    return LlamaModel(LlamaConfig(vocab_size=9, num_key_value_heads=2, **SMALL)).eval()


def clip():
    torch.manual_seed(0)
    return CLIPVisionModel(CLIPVisionConfig(image_size=8, patch_size=4, **SMALL)).eval()


INPUTS = {llama: torch.arange(6)[None], clip: torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))}


@pytest.mark.parametrize("build", INPUTS)
@pytest.mark.parametrize("mlp", [False, True])
def test_adapters_do_nothing_at_first_and_are_all_that_is_trained(build, mlp):
    model, given = build(), INPUTS[build]
    with torch.no_grad():
        before = model(given).last_hidden_state
    added = add_bottlenecks(model, 4, mlp=mlp, depth=2)
    with torch.no_grad():
        assert torch.equal(model(given).last_hidden_state, before)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(added) == 4 * 2 * (1 + mlp)
    assert all(".adapter_" in name for name in trained)
    model(given).last_hidden_state.sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in added)


@pytest.mark.parametrize("build", INPUTS)
def test_saved_adapters_load_into_a_fresh_model(build):
    model, given = build(), INPUTS[build]
    for parameter in add_bottlenecks(model, 4):
        parameter.data = torch.randn_like(parameter)
    fresh = build()
    load_bottlenecks(fresh, bottleneck_state(model), "here")
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(given).last_hidden_state, model.eval()(given).last_hidden_state)


def test_adapters_of_another_model_are_refused():
    state = {f"deep.{key}": value for key, value in _state().items()}
    with pytest.raises(VistokError, match="'here'"):
        load_bottlenecks(llama(), state, "here")


def test_adapters_are_put_in_once():
    model = llama()
    add_bottlenecks(model)
    with pytest.raises(VistokError, match="already"):
        add_bottlenecks(model)
    with pytest.raises(VistokError, match="no layers"):
        add_bottlenecks(torch.nn.Linear(2, 2))


def _state():
    model = llama()
    add_bottlenecks(model, 4)
    return bottleneck_state(model)
