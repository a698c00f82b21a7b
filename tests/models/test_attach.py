"""Attachments compose around generate, travel with copies, and leave no trace."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from vistok.errors import VistokError
from vistok.models.attach import Attachment, attached, unwrapped


class Toy(nn.Module):
    """A model with the two calls that are attached to."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        return self.linear(x)

    def generate(self, inputs, times=1):
        return [*inputs, "generate"] * times


class Named(Attachment):
    def __init__(self, model, word):
        super().__init__(model)
        self.word, self.seen = word, 0
        self.before(model.linear, self.count)

    def count(self, module, args, kwargs):
        self.seen += 1

    def generate(self, plain, inputs, **kwargs):
        return plain([*inputs, self.word], **kwargs)


class One(Named):
    slot = "one"


class Two(Named):
    slot = "two"


@pytest.mark.parametrize("first_out", [0, 1])
def test_they_compose_and_leave_in_any_order(first_out):
    model = Toy()
    before = set(vars(model))
    handles = [One(model, "a"), Two(model, "b")]
    assert model.generate([]) == ["b", "a", "generate"]  # the latest is outermost
    model(torch.zeros(1, 2))
    assert [handle.seen for handle in handles] == [1, 1]
    with pytest.raises(VistokError, match="has a one already"):
        One(model, "c")
    handles[first_out].remove()
    assert model.generate([]) == ["ba"[first_out], "generate"]
    handles[1 - first_out].remove()
    handles[0].remove()
    assert set(vars(model)) == before
    assert model.generate([]) == ["generate"]
    assert not model.linear._forward_pre_hooks


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_takes_its_own_along(how):
    model = Toy()
    with One(model, "a") as handle:
        other = how(model)
    assert type(other) is Toy
    mine = attached(other, "one")
    assert mine is not handle
    assert mine.model is other
    other(torch.zeros(1, 2))
    assert (handle.seen, mine.seen) == (0, 1)
    assert other.generate([]) == ["a", "generate"]
    mine.remove()
    assert other.generate([]) == model.generate([]) == ["generate"]


def test_a_generate_that_the_model_had_comes_back():
    """transformers sets one for repositories with decoding of their own."""
    model = Toy()
    model.generate = own = lambda inputs: ["own", *inputs]
    with One(model, "a"):
        assert model.generate([]) == ["own", "a"]
    assert model.generate is own


def test_its_signature_is_the_models():
    model = Toy()
    plain = inspect.signature(model.generate)
    with One(model, "a"):
        assert inspect.signature(model.generate) == plain


def test_what_is_inside_a_wrapper():
    model = Toy()
    assert unwrapped(model) is model
    with pytest.raises(VistokError, match=r"then torch\.compile"):
        unwrapped(torch.compile(model))
