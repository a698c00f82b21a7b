"""Clover: drafting forms the states that training forms, and decides the tokens of plain decoding."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import prompt, tiny, tiny_clover, tiny_head
from vistok.errors import VistokError
from vistok.models.heads.clover import Clover
from vistok.samplers import Branching, CloverHead, generate

OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("policy", [None, Branching((2, 1))])
def test_greedy_tokens_are_those_of_plain_generate(policy):
    expected = tiny().generate(**ragged(), **OPTIONS)
    assert torch.equal(generate(tiny(), ragged(), CloverHead(tiny_clover(), policy), **OPTIONS).sequences, expected)


def test_training_forms_the_states_of_drafting():
    """The text's own tokens are drafted behind each place in turn, one behind the other."""
    network, text = tiny_clover(), prompt(2, 9)
    features = tiny()(text, output_hidden_states=True).hidden_states[-1]
    found = network.unrolled(features[:, :6], text[:, 1:], 3)
    for place in range(6):
        cache = network.new_cache(2, 12)
        state = network(features[:, : place + 1], text[:, 1 : place + 2], cache)[:, -1:]
        cache.advance(place + 1)
        assert torch.allclose(found[0][:, place], state[:, 0], atol=1e-6)
        for depth in (1, 2):
            token = text[:, place + 1 + depth : place + 2 + depth]
            seen = torch.ones(2, 1, depth, dtype=torch.bool)
            state = network(state, token, cache, cache.lengths[:, None], seen)
            cache.advance(1)
            assert torch.allclose(found[depth][:, place], state[:, 0], atol=1e-6)


def test_it_round_trips_and_another_network_is_refused(tmp_path):
    tiny_clover().float().save_pretrained(tmp_path)
    found = Clover.from_pretrained(str(tmp_path))
    assert torch.equal(found.embedded.weight, tiny_clover().float().embedded.weight)
    with pytest.raises(VistokError, match="type Eagle"):
        CloverHead(tiny_head())
