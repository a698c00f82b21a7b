"""Speculation behind prompts with pictures: the tokens of plain ``generate``, compressed or not, in padded batches."""

from __future__ import annotations

import contextlib
import functools

import pytest
import torch

from tests.projectors import tiny
from tests.samplers.tiny import tiny as tiny_text
from vistok import compress
from vistok.errors import VistokError
from vistok.models.families import FAMILIES
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.projectors import DivPrune, FastV, ToMe
from vistok.samplers import Branching, DraftModel, PromptLookup, Speculation, TokenRecycling, generate
from vistok.samplers.drafters.eagle_head import EagleHead
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.targets.pictures import text_of

NAMES = [name for name in FAMILIES if hasattr(tiny, name) and name != "lfm2_vl"]  # refused, see test_arguments.py
TREE = ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
GREEDY = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
# What thins the pictures: before the text model, in tokens that stand for several, and inside the text model.
THINNED = {"whole": None, "divprune": DivPrune(0.5), "tome": ToMe(0.5), "fastv": FastV(0.5)}


@functools.cache
def _model(name: str, attention: str = "sdpa"):
    return getattr(tiny, name)(attention)


def _inputs(name: str):
    return getattr(tiny, f"{name}_inputs")()


@functools.cache
def _head() -> EagleNetwork:
    torch.manual_seed(5)
    config = EagleConfig(tiny.VOCAB, 48, 64, 4, num_key_value_heads=2)
    return EagleNetwork(config).eval().requires_grad_(False)


def _drafters():
    return {
        "none": None,
        "lookup": PromptLookup(4, 2),
        "recycling": TokenRecycling(TREE),
        "draft model": DraftModel(tiny_text(seed=1, vocab_size=tiny.VOCAB).float(), Branching((2, 1))),
        "eagle": EagleHead(_head()),
    }


def _thinner(model, name):
    return contextlib.nullcontext() if THINNED[name] is None else compress(model, THINNED[name])


@pytest.mark.parametrize("thinned", THINNED)
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_of_every_family(name, thinned):
    model, inputs = _model(name), _inputs(name)
    if name in ("gemma3", "aya_vision", "cohere2_vision") and thinned == "fastv":
        pytest.skip("compress refuses it: sliding layers forget what lies behind their window")
    with _thinner(model, thinned):
        plain = model.generate(**inputs, **GREEDY)
        for drafter in (TokenRecycling(TREE), PromptLookup(4, 2)):
            found = generate(model, inputs, drafter, **GREEDY)
            assert torch.equal(found.sequences, plain), type(drafter).__name__
            one = model.generate(**inputs, **GREEDY, custom_generate=Speculation(drafter))
            assert torch.equal(one, plain)


@pytest.mark.parametrize("thinned", ["whole", "divprune", "fastv"])
@pytest.mark.parametrize("name", NAMES)
def test_several_sequences_of_a_prompt_are_those_of_generate(name, thinned):
    """Drawn from one token each, so that all draws are the same."""
    model, inputs = _model(name), _inputs(name)
    if name in ("gemma3", "aya_vision", "cohere2_vision") and thinned == "fastv":
        pytest.skip("compress refuses it: sliding layers forget what lies behind their window")
    options = GREEDY | {"max_new_tokens": 6, "do_sample": True, "top_k": 1, "num_return_sequences": 3}
    with _thinner(model, thinned):
        plain = model.generate(**inputs, **options)
        assert torch.equal(generate(model, inputs, TokenRecycling(TREE), **options).sequences, plain)


@pytest.mark.parametrize("drafter", _drafters())
@pytest.mark.parametrize("thinned", ["whole", "divprune", "fastv"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_greedy_tokens_with_every_drafter(name, thinned, drafter):
    model, inputs = _model(name), _inputs(name)
    with _thinner(model, thinned):
        plain = model.generate(**inputs, **GREEDY)
        assert torch.equal(generate(model, inputs, _drafters()[drafter], **GREEDY).sequences, plain)


@pytest.mark.parametrize("name", ["llava", "gemma3", "paligemma"])
def test_eager_attention(name):
    model, inputs = _model(name, "eager"), _inputs(name)
    plain = model.generate(**inputs, **GREEDY)
    assert torch.equal(generate(model, inputs, TokenRecycling(TREE), **GREEDY).sequences, plain)


def test_positions_that_tokens_keep():
    model, inputs = _model("llava"), _inputs("llava")
    with compress(model, DivPrune(0.5), positions="original"):
        plain = model.generate(**inputs, **GREEDY)
        assert torch.equal(generate(model, inputs, TokenRecycling(TREE), **GREEDY).sequences, plain)


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
def test_pictures_change_the_answer_and_a_text_alone_has_one(name):
    model, inputs = _model(name), _inputs(name)
    first = generate(model, inputs, PromptLookup(), **GREEDY).sequences
    other = dict(inputs, pixel_values=-3 * inputs["pixel_values"])
    assert not torch.equal(generate(model, other, PromptLookup(), **GREEDY).sequences, first)
    words = {"input_ids": torch.tensor([[5, 6, 7], [0, 8, 9]]), "attention_mask": torch.tensor([[1, 1, 1], [0, 1, 1]])}
    plain = model.generate(**words, **GREEDY)  # right after pictures, whose positions must not linger
    assert torch.equal(generate(model, words, PromptLookup(), **GREEDY).sequences, plain)


def test_drafters_that_read_words_see_no_placeholders():
    ids = torch.tensor([[0, 5, tiny.IMAGE, tiny.IMAGE, 6, 7], [1, tiny.IMAGE, 2, 3, 4, tiny.IMAGE]])
    words = text_of(_model("llava"), Prompt.of(ids, torch.tensor([[0, 1, 1, 1, 1, 1], [1] * 6])))
    assert words.count.tolist() == [3, 5]
    assert words.flush[0, :3].tolist() == [5, 6, 7]
    assert words.flush[1].tolist() == [1, 2, 3, 4, tiny.IMAGE]  # a prompt never loses its last token
    drafter = TokenRecycling(TREE)
    generate(_model("llava"), _inputs("llava"), drafter, **GREEDY | {"max_new_tokens": 1})
    assert not bool(drafter.adjacency[tiny.IMAGE].any())


def test_a_sabotaged_cache_is_caught(monkeypatch):
    """A twin that forgets the offset of positions, or the holes of pruned layers, gives other tokens."""
    from vistok.samplers.targets.pictures import PictureTarget

    model, inputs = _model("qwen2_vl"), _inputs("qwen2_vl")
    plain = model.generate(**inputs, **GREEDY)
    kept = PictureTarget._keep

    def forgetful(self, cache):
        kept(self, cache)
        self.lm.offset = 0

    monkeypatch.setattr(PictureTarget, "_keep", forgetful)
    assert not torch.equal(generate(model, inputs, PromptLookup(), **GREEDY).sequences, plain)


def test_a_sampled_seed_draws_the_same_with_and_without_drafts():
    model, inputs = _model("llava"), _inputs("llava")
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.8, "pad_token_id": 0}
    runs = []
    for drafter in (None, PromptLookup(4, 2), TokenRecycling(TREE)):
        torch.manual_seed(4)
        runs.append(generate(model, inputs, drafter, **options).sequences)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_streamers_and_stop_strings_behind_compressed_pictures():
    class Kept:
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens.append(value.flatten().tolist())

        def end(self):
            self.tokens.append("end")

    model = _model("llava")
    inputs = tiny.llava_inputs((1,), ((4, 3),))
    with compress(model, DivPrune(0.5)):
        streamer = Kept()
        found = generate(model, inputs, PromptLookup(), streamer=streamer, **GREEDY).sequences
    width = inputs["input_ids"].shape[1]
    assert streamer.tokens[0] == inputs["input_ids"][0].tolist()
    assert [token for part in streamer.tokens[1:-1] for token in part] == found[0, width:].tolist()
    assert streamer.tokens[-1] == "end"


def test_what_cannot_be_done_is_said():
    model, inputs = _model("llava"), _inputs("llava")
    ids = inputs["input_ids"]
    with pytest.raises(VistokError, match="inputs_embeds"):
        model.generate(inputs_embeds=model.get_input_embeddings()(ids), custom_generate=Speculation(), **GREEDY)
    with pytest.raises(VistokError, match="padded on the left"):
        right = tiny.llava_inputs(left=False)
        generate(model, right, PromptLookup(), **GREEDY)
