"""``vistok.accelerate`` on pictures, text and LlamaGen; what it refuses leaves the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import LogitsProcessorList

import vistok
from tests.samplers.tiny import prompt, tiny
from tests.samplers.tiny_codes import MODELS, call
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.samplers import MaskedAutoregressive, Recycling, Speculation, SpeculativeJacobi, TokenRecycling

TEXT_CALL = {"max_new_tokens": 6, "do_sample": False}


def test_it_can_be_removed_without_a_with_block():
    model = MODELS["janus"]()
    before = dict(vars(model))
    run = vistok.accelerate(model, SpeculativeJacobi(4))
    assert run.stats is None
    model.generate(**call("janus", do_sample=True))
    assert run.stats.tokens == 9
    run.remove()
    assert vars(model) == before
    run.remove()  # twice does nothing


def test_what_a_sampler_prepares_serves_the_next_call():
    model = MODELS["emu3"]()
    with vistok.accelerate(model, SpeculativeJacobi("auto")) as run:
        model.generate(**call("emu3", do_sample=True))
        first = run._generator
        model.generate(**call("emu3", do_sample=True))
        assert run._generator is first
        model.generate(**call("emu3", do_sample=True) | {"max_new_tokens": 4})
        assert run._generator is not first
        assert run.stats.tokens == 4


def test_a_call_for_text_goes_through_as_it_is():
    model = MODELS["janus"]()
    inputs = {"input_ids": torch.tensor([[1, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    wanted = model.generate(**inputs, **TEXT_CALL)
    with vistok.accelerate(model, SpeculativeJacobi(4)) as run:
        assert torch.equal(model.generate(**inputs, **TEXT_CALL), wanted)
    assert run.stats is None


def test_an_output_object_is_returned_where_the_call_wants_one():
    model = MODELS["janus"]()
    with vistok.accelerate(model, SpeculativeJacobi(4)):
        plain = model.generate(**call("janus", do_sample=False))
        found = model.generate(**call("janus", do_sample=False, return_dict_in_generate=True))
    assert torch.equal(found.sequences, plain)


@pytest.mark.parametrize("given", [TokenRecycling(), Speculation(TokenRecycling())])
def test_on_a_causal_lm_it_is_what_custom_generate_takes(given):
    model, ids = tiny(), prompt(1)
    wanted = model.generate(ids, **TEXT_CALL)
    with vistok.accelerate(model, given) as run:
        assert torch.equal(model.generate(ids, **TEXT_CALL), wanted)
    assert run.stats.tokens == 6
    if isinstance(given, Speculation):
        assert given.stats is run.stats


def test_a_llamagen_gets_a_generate_of_the_same_form():
    torch.manual_seed(0)
    model = LlamaGen(LlamaGenConfig(dim=16, n_layer=1, n_head=2, vocab_size=11, block_size=16, num_classes=3)).eval()
    found = []
    for sampler in (SpeculativeJacobi(4), Recycling()):
        with vistok.accelerate(model, sampler) as run:
            found.append(model.generate(torch.tensor([0, 2]), do_sample=False, guidance_scale=2.0))
        assert run.stats.tokens == 16
    assert torch.equal(*found)
    assert not hasattr(model, "generate")


def test_models_that_draw_no_pictures_are_refused_by_name():
    with pytest.raises(VistokError, match="LlamaForCausalLM is no image generator"):
        vistok.accelerate(tiny(), SpeculativeJacobi(4))
    with pytest.raises(VistokError, match="Linear is no image generator"):
        vistok.accelerate(torch.nn.Linear(2, 2), SpeculativeJacobi(4))
    with pytest.raises(VistokError, match="no sampler of the draft-verify loop"):
        vistok.accelerate(MODELS["janus"](), MaskedAutoregressive())


@pytest.mark.parametrize("kind", ["emu3", "chameleon"])
def test_a_vocabulary_without_image_tokens_is_refused(kind):
    model = copy.deepcopy(MODELS[kind]())
    model.config.vocabulary_map = {"<image>": 4}
    mapping = type(model.model.vocabulary_mapping)({"<image>": 4})
    model.model.vocabulary_mapping = mapping
    with pytest.raises(VistokError, match="vocabulary_map"):
        vistok.accelerate(model, SpeculativeJacobi(4))
    assert "generate" not in vars(model)


@pytest.mark.parametrize("kind", MODELS)
def test_kernels_that_take_no_tree_mask_are_refused(kind):
    model = copy.deepcopy(MODELS[kind]())
    model.config.get_text_config()._attn_implementation = "flash_attention_2"
    with pytest.raises(VistokError, match=r"flash_attention_2.*attn_implementation='sdpa'"):
        vistok.accelerate(model, SpeculativeJacobi(4))


def test_a_second_sampler_is_refused():
    model = MODELS["janus"]()
    with vistok.accelerate(model, SpeculativeJacobi(4)), pytest.raises(VistokError, match=r"remove\(\)"):
        vistok.accelerate(model, SpeculativeJacobi(8))


BAD = {
    "num_beams": ({"num_beams": 2}, "num_beams=1"),
    "assistant_model": ({"assistant_model": object()}, "assistant_model"),
    "processors": ({"logits_processor": LogitsProcessorList([lambda ids, scores: scores])}, "logits_processor"),
    "streamer": ({"streamer": object()}, "streamer"),
    "repetition_penalty": ({"repetition_penalty": 1.3}, "RepetitionPenalty"),
    "no_repeat_ngram_size": ({"no_repeat_ngram_size": 2}, "NoRepeatNGram"),
    "min_new_tokens": ({"min_new_tokens": 4}, "MinNewTokens"),
    "min_p": ({"min_p": 0.1}, "MinP"),
    "scores": ({"output_scores": True, "return_dict_in_generate": True}, "output_scores"),
    "stop_strings": ({"stop_strings": ["a"]}, "stop_strings"),
    "max_time": ({"max_time": 1.0}, "max_time"),
    "a picture to edit": ({"pixel_values": torch.zeros(1, 3, 6, 6)}, "pixel_values"),
    "right padding": ({"attention_mask": torch.tensor([[1] * 4 + [0] * 2] * 2)}, "padding_side"),
}


@pytest.mark.parametrize("name", BAD)
def test_calls_that_a_sampler_cannot_heed_are_refused_by_name(name):
    options, culprit = BAD[name]
    model = MODELS["janus"]()
    before = dict(vars(model))
    with vistok.accelerate(model, SpeculativeJacobi(4)), pytest.raises(VistokError, match=culprit):
        model.generate(**call("janus", do_sample=True) | options)
    assert vars(model) == before


@pytest.mark.parametrize("option", [{"max_new_tokens": 7}, {"max_length": 18}])
def test_a_limit_cuts_the_picture_as_in_transformers(option):
    model = MODELS["emu3"]()
    arguments = {k: v for k, v in call("emu3", do_sample=False).items() if k != "max_new_tokens"} | option
    wanted = model.generate(**arguments)
    with vistok.accelerate(model, SpeculativeJacobi(4)):
        assert torch.equal(model.generate(**arguments), wanted)
        del arguments["prefix_allowed_tokens_fn"]
        assert torch.equal(model.generate(**arguments), wanted)


def test_pictures_of_several_sizes_or_of_none_are_refused():
    model = MODELS["emu3"]()
    arguments = call("emu3", do_sample=False)
    del arguments["prefix_allowed_tokens_fn"]
    words, ids = model.config.vocabulary_map, arguments["input_ids"].clone()
    with vistok.accelerate(model, SpeculativeJacobi(4)):
        ids[1, -4] = words["4"]
        with pytest.raises(VistokError, match=r"2\*4, 4\*4"):
            model.generate(**arguments | {"input_ids": ids})
        ids[:, -3] = 12
        with pytest.raises(VistokError, match="names no picture size"):
            model.generate(**arguments | {"input_ids": ids})


def test_a_rule_that_is_no_plan_is_refused():
    model = MODELS["chameleon"]()
    arguments = call("chameleon", do_sample=False) | {"prefix_allowed_tokens_fn": lambda batch, ids: [4, 5]}
    with vistok.accelerate(model, SpeculativeJacobi(4)), pytest.raises(VistokError, match="allows 2 tokens at place 0"):
        model.generate(**arguments)


def test_a_model_in_training_mode_is_refused():
    model = copy.deepcopy(MODELS["emu3"]()).train()
    with vistok.accelerate(model, SpeculativeJacobi(4)), pytest.raises(VistokError, match=r"eval\(\)"):
        model.generate(**call("emu3"))
