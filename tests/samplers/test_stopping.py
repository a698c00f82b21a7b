"""Streams and stops: tokens arrive and end as plain ``generate`` has them, in batches too."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
    TextIteratorStreamer,
)
from transformers.generation.streamers import BaseStreamer

import vistok
from tests.samplers.test_speculation import drafters, ragged
from tests.samplers.tiny import prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import PromptLookup, Speculation, generate
from vistok.zoo.transformers import load_causal_lm

DRAFTERS = ("none", "recycling", "lookup", "branching")
OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


class Recorder(BaseStreamer):
    def __init__(self):
        self.columns, self.ended = [], 0

    def put(self, value):
        assert not self.ended
        self.columns.append(value.clone())

    def end(self):
        self.ended += 1


class AtToken(StoppingCriteria):
    """Stops rows at a token, and remembers every text that it was shown."""

    def __init__(self, token: int):
        self.token, self.seen = token, []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append(input_ids.clone())
        return input_ids[:, -1] == self.token


def plain_tokens(inputs, **options):
    return tiny().generate(**inputs, **{**OPTIONS, **options})


INPUTS = {"alone": {"input_ids": prompt(), "attention_mask": torch.ones(1, 7, dtype=torch.int64)}, "batch": ragged()}


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("which", INPUTS)
def test_streamers_get_what_plain_generate_gives_them(which, name):
    inputs = INPUTS[which]
    ends = [int(plain_tokens(inputs)[0, 7 + 6])]
    for options in ({}, {"eos_token_id": ends}):
        plain, found, own = Recorder(), Recorder(), Recorder()
        plain_tokens(inputs, **options, streamer=plain)
        generate(tiny(), inputs, drafters()[name], streamer=found, **OPTIONS, **options)
        way = Speculation(drafters()[name])
        tiny().generate(**inputs, **OPTIONS, **options, streamer=own, custom_generate=way)
        for streamer in (found, own):
            assert streamer.ended == plain.ended == 1
            assert len(streamer.columns) == len(plain.columns)
            assert all(torch.equal(a, b) for a, b in zip(streamer.columns, plain.columns, strict=True))


def test_a_streamer_gets_tokens_while_decoding_goes_on():
    class Impatient(Recorder):
        def put(self, value):
            super().put(value)
            if len(self.columns) == 4:
                raise KeyboardInterrupt

    streamer = Impatient()
    with pytest.raises(KeyboardInterrupt):
        generate(tiny(), prompt(), PromptLookup(), streamer=streamer, **OPTIONS)
    assert streamer.ended == 1


def test_a_reader_does_not_wait_for_a_call_that_is_refused():
    model, tokenizer = load_causal_lm("text-mini")
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=5)
    with pytest.raises(VistokError, match="penalty_alpha"):
        generate(model, tokenizer("x", return_tensors="pt"), streamer=streamer, penalty_alpha=0.5, **OPTIONS)
    assert "".join(streamer) == ""


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("which", INPUTS)
def test_an_own_criterion_is_asked_as_plain_generate_asks_it(which, ends, name):
    """Without end tokens, a batch goes on until every row has stopped once."""
    inputs = INPUTS[which]
    usual = plain_tokens(inputs)
    token = int(usual[0, 7 + 8])
    options = {"eos_token_id": [int(usual[-1, 7 + 11])]} if ends else {}
    mine, theirs = AtToken(token), AtToken(token)
    plain = plain_tokens(inputs, **options, stopping_criteria=StoppingCriteriaList([theirs]))
    found = generate(tiny(), inputs, drafters()[name], stopping=mine, **OPTIONS, **options)
    assert torch.equal(found.sequences, plain)
    assert len(mine.seen) == len(theirs.seen)
    assert all(torch.equal(a, b) for a, b in zip(mine.seen, theirs.seen, strict=True))


def test_stop_strings_by_every_way():
    model, tokenizer = load_causal_lm("text-mini")
    inputs = tokenizer("def read(self, path):\n", return_tensors="pt")
    options = {"max_new_tokens": 40, "do_sample": False}
    plain = model.generate(**inputs, **options, stop_strings=["path to"], tokenizer=tokenizer)
    assert plain.shape[1] < inputs["input_ids"].shape[1] + 40
    criterion = StoppingCriteriaList([StopStringCriteria(tokenizer, ["path to"])])
    for more in (
        {"stop_strings": ["path to"], "tokenizer": tokenizer},
        {"stop_strings": "path to", "tokenizer": tokenizer},
        {"stopping": "path to", "tokenizer": tokenizer},
        {"stopping": ["path to", "never said"], "tokenizer": tokenizer},
        {"stopping_criteria": criterion},
        {"stopping": criterion},
    ):
        assert torch.equal(generate(model, inputs, PromptLookup(), **options, **more).sequences, plain), more
    way = Speculation(PromptLookup(), stopping="path to", tokenizer=tokenizer)
    assert torch.equal(model.generate(**inputs, **options, custom_generate=way), plain)
    with vistok.accelerate(model, PromptLookup()):
        found = model.generate(**inputs, **options, stop_strings=["path to"], tokenizer=tokenizer)
        assert torch.equal(found, plain)
    model.generation_config.stop_strings = ["path to"]
    assert torch.equal(generate(model, inputs, PromptLookup(), **options, tokenizer=tokenizer).sequences, plain)
    model.generation_config.stop_strings = None
    with pytest.raises(VistokError, match=r"'path to' .* pass tokenizer"):
        generate(model, inputs, PromptLookup(), **options, stop_strings=["path to"])


def test_stop_strings_in_a_batch():
    model, tokenizer = load_causal_lm("text-mini")
    texts = ["def read(self, path):\n", "class Reader:\n    def __init__(self, path):\n"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    options = {"max_new_tokens": 40, "do_sample": False, "stop_strings": ["path", "\n"], "tokenizer": tokenizer}
    plain = model.generate(**inputs, **options)
    assert torch.equal(generate(model, inputs, PromptLookup(), **options).sequences, plain)


def test_time_and_length_end_a_text():
    inputs = INPUTS["batch"]
    found = generate(tiny(), inputs, PromptLookup(), max_time=0.0, **OPTIONS)
    assert torch.equal(found.sequences, plain_tokens(inputs, max_time=0.0))
    assert torch.equal(generate(tiny(), inputs, max_time=60.0, **OPTIONS).sequences, plain_tokens(inputs))
    short = StoppingCriteriaList([MaxLengthCriteria(12)])
    found = generate(tiny(), inputs, PromptLookup(), stopping_criteria=short, **OPTIONS)
    assert torch.equal(found.sequences, plain_tokens(inputs)[:, :12])


def test_what_lies_behind_a_stop_is_cut():
    """A draft that goes on behind the stop is accepted by nobody: statistics count what the text has."""
    usual = plain_tokens(INPUTS["alone"])
    found = generate(tiny(), prompt(), drafters()["recycling"], stopping=AtToken(int(usual[0, 7 + 5])), **OPTIONS)
    assert found.stats.lengths.tolist() == [found.sequences.shape[1] - 7]
    assert int(found.sequences[0, -1]) == int(usual[0, 7 + 5])
