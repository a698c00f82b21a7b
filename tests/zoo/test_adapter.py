"""A folder of LoRA factors is a model of its own: it loads by its name, and only on what it was trained on."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.context.tiny import tiny
from vistok.errors import VistokError
from vistok.train.lora import EVERY_MAP, Lora, with_lora
from vistok.zoo import resolve
from vistok.zoo.adapter import HASHES, LORA_CONFIG, LORA_WEIGHTS, save_adapter
from vistok.zoo.transformers import load_causal_lm


def moved(model, seed=0):
    """Give a model factors that are not nothing; returns it as PEFT wraps it."""
    wrapped = with_lora(model, Lora(rank=2, alpha=4, modules=EVERY_MAP))
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora" in name:
            values = torch.randn(parameter.shape, generator=generator) * 0.05
            parameter.data.copy_(values.bfloat16())  # as they are stored
    return wrapped


@pytest.fixture
def below(tmp_path):
    """A whole model with its tokenizer."""
    tiny(layers=2, vocab_size=3072).save_pretrained(tmp_path / "below")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "below" / name).write_text((resolve("text-mini") / name).read_text())
    return tmp_path / "below"


def adapted(below, folder, seed=0):
    """An adapter in a folder, and the logits that its model has."""
    model, _ = load_causal_lm(below)
    wrapped = moved(model, seed)
    wrapped.config.max_position_embeddings = 777
    save_adapter(folder, wrapped, str(below))
    return model(torch.arange(20)[None]).logits


def test_an_adapter_loads_as_the_model_that_was_trained(below, tmp_path):
    wanted = adapted(below, tmp_path / "one")
    model, tokenizer = load_causal_lm(tmp_path / "one")
    assert torch.allclose(model(torch.arange(20)[None]).logits, wanted, atol=1e-5)
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 777
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_may_stand_on_another(below, tmp_path):
    adapted(below, tmp_path / "one")
    wanted = adapted(tmp_path / "one", tmp_path / "two", seed=1)
    assert torch.allclose(load_causal_lm(tmp_path / "two")[0](torch.arange(20)[None]).logits, wanted, atol=1e-5)


def test_an_adapter_on_other_weights_is_refused(below, tmp_path):
    adapted(below, tmp_path / "one")
    state = load_file(below / "model.safetensors")
    state["model.norm.weight"] += 1
    save_file(state, below / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(VistokError, match="other weights"):
        load_causal_lm(tmp_path / "one")


def test_factors_of_another_shape_are_refused(below, tmp_path):
    adapted(below, tmp_path / "one")
    file = tmp_path / "one" / LORA_WEIGHTS
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    assert len(metadata[HASHES]) == 64
    state = {key: value[:, :-1] if ".lora_A" in key else value for key, value in load_file(file).items()}
    save_file({key: value.contiguous() for key, value in state.items()}, file, metadata=metadata)
    with pytest.raises(VistokError, match="fits no weight"):
        load_causal_lm(tmp_path / "one")


@pytest.mark.parametrize("entry", [None, "itself"])
def test_an_adapter_that_names_no_model_below_is_refused(below, tmp_path, entry):
    adapted(below, tmp_path / "one")
    file = tmp_path / "one" / LORA_CONFIG
    base = str(tmp_path / "one") if entry else None
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base}))
    with pytest.raises(VistokError, match="below"):
        load_causal_lm(tmp_path / "one")


@pytest.mark.parametrize(
    ("entries", "culprit"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": 0}, "no rank"),
        ({"r": None}, "no rank"),
        ({"lora_alpha": "4"}, "lora_alpha"),
    ],
)
def test_a_configuration_that_is_no_plain_sum_is_refused(below, tmp_path, entries, culprit):
    adapted(below, tmp_path / "one")
    file = tmp_path / "one" / LORA_CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    with pytest.raises(VistokError, match=culprit):
        load_causal_lm(tmp_path / "one")


def test_rank_stabilised_factors_have_their_own_scale(below, tmp_path):
    adapted(below, tmp_path / "one")
    file = tmp_path / "one" / LORA_CONFIG
    entries = json.loads(file.read_text())
    tokens = torch.arange(20)[None]
    stable = entries | {"use_rslora": True, "lora_alpha": entries["lora_alpha"] / math.sqrt(entries["r"])}
    wanted = load_causal_lm(tmp_path / "one")[0](tokens).logits
    file.write_text(json.dumps(stable))
    assert torch.allclose(load_causal_lm(tmp_path / "one")[0](tokens).logits, wanted, atol=1e-5)


@pytest.mark.parametrize("key", ["base_model.model.lm_head.weight", "x.lora_magnitude_vector.weight", "x.lora_B.bias"])
def test_what_is_no_factor_is_not_dropped_in_silence(below, tmp_path, key):
    adapted(below, tmp_path / "one")
    file = tmp_path / "one" / LORA_WEIGHTS
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file) | {key: torch.ones(2)}, file, metadata=metadata)
    with pytest.raises(VistokError, match=key):
        load_causal_lm(tmp_path / "one")


@pytest.mark.parametrize("name", [LORA_CONFIG, LORA_WEIGHTS])
def test_damaged_files_of_an_adapter_are_named(below, tmp_path, name):
    adapted(below, tmp_path / "one")
    file = tmp_path / "one" / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(VistokError, match=name):
        load_causal_lm(tmp_path / "one")
