"""Random numbers by their keys: the same whatever form the keys have, and as long as they were."""

from __future__ import annotations

import time

import pytest
import torch

from vistok.errors import VistokError
from vistok.ops.noise import absorb, as_uniform, counter_bits, counter_uniform
from vistok.samplers import clock
from vistok.samplers.noise import Noise


@pytest.mark.parametrize("keys", [(0,), (7, 3), (2**64 - 1, 5), (-(2**63), 2**63 - 1), (3, 2**64 - 2, 0)])
def test_numbers_give_the_bits_of_tensors(keys):
    signed = [key - 2**64 if key >= 2**63 else key for key in keys]
    assert torch.equal(counter_bits(*keys), counter_bits(*(torch.tensor(key) for key in signed)))


def test_bits_are_those_of_the_first_release():
    places = torch.arange(3)
    assert counter_bits(1, 2, 3).item() == 105800997263431414
    assert counter_bits(1, 2, places)[0].item() == counter_bits(1, 2, 0).item()


def test_first_keys_may_be_kept():
    places = torch.arange(4)
    assert torch.equal(as_uniform(absorb(counter_bits(5, 6), places, 7)), counter_uniform(5, 6, places, 7))
    noise = Noise(5, torch.tensor([6, 8]))
    assert torch.equal(noise.uniform(places.expand(2, -1), 1, 9)[1], counter_uniform(5, 8, places, 1, 9))


def test_seeds_of_more_bits_are_refused():
    with pytest.raises(VistokError, match="64 bits"):
        counter_bits(2**64)


@pytest.mark.skipif(not clock._FINE, reason="this system has no fine clock of threads")
def test_waiting_is_no_work_on_a_processor():
    began = clock.seconds("cpu")
    time.sleep(0.2)
    assert clock.seconds("cpu") - began < 0.1
