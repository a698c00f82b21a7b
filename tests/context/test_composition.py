"""Policies beside speculation and compression."""

from __future__ import annotations

import pytest
import torch

from tests.context.tiny import ragged, tiny
from tests.projectors.tiny import IMAGE, SIDE, llava
from vistok import compress, context
from vistok.errors import VistokError
from vistok.projectors import FastV, PMod, PyramidDrop, Uniform
from vistok.samplers import Speculation, TokenRecycling


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.mark.parametrize("policy", [context.Full, lambda: context.TidalDecode(999, 1)])
def test_draft_trees_are_checked_exactly_where_nothing_is_left_out(policy, model):
    inputs = ragged()
    plain = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    with context.apply(model, policy()):
        out = model.generate(
            **inputs, max_new_tokens=12, do_sample=False, custom_generate=Speculation(TokenRecycling())
        )
    assert torch.equal(out, plain)


@pytest.mark.parametrize("pool", ["max", "vote"])
def test_draft_trees_run_on_sparse_reads(pool, model):
    with context.apply(model, context.TidalDecode(6, 1, pool=pool)) as at_work:
        speculation = Speculation(TokenRecycling())
        out = model.generate(**ragged((60, 40)), max_new_tokens=12, do_sample=False, custom_generate=speculation)
    assert out.shape == (2, 72)
    assert at_work.last.steps > 0
    assert at_work.last.share < 1


def test_a_policy_that_cannot_take_drafts_says_so(model):
    with context.apply(model, context.StreamingLLM()), pytest.raises(VistokError, match=r"streaming.*TidalDecode"):
        model.generate(**ragged(), max_new_tokens=4, custom_generate=Speculation(TokenRecycling()))


@pytest.mark.parametrize("first", ["compressor", "policy"])
@pytest.mark.parametrize("policy", [context.SnapKV, context.StreamingLLM, context.TidalDecode, context.Full])
@pytest.mark.parametrize("method", [FastV(9), PyramidDrop(9), PMod(48, [None, 0.5, 0.5, 0.5])], ids=lambda m: m.name)
def test_methods_inside_the_language_model_and_policies_exclude_each_other(method, policy, first):
    model = llava()
    ids = torch.tensor([[1, *[IMAGE] * 36, 5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, SIDE, SIDE)}
    calls = [lambda: compress(model, method), lambda: context.apply(model, policy())]
    one, other = calls if first == "compressor" else calls[::-1]
    with one(), other():
        with pytest.raises(VistokError, match=f"{method.name}.*remove"):
            model.generate(**inputs, max_new_tokens=2, do_sample=False)
        with pytest.raises(VistokError, match=f"{method.name}.*remove"):
            model(**inputs)
        assert model.generate(ids[:, 37:], max_new_tokens=2, do_sample=False).shape == (1, 5)  # text alone


@pytest.mark.parametrize("first", ["compressor", "policy"])
def test_a_compressed_prompt_is_read_sparsely(first):
    model = llava()
    ids = torch.tensor([[1, *[IMAGE] * 36, 5, 6, 7]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, SIDE, SIDE)}
    with compress(model, Uniform(keep=16)):
        shorter = model.generate(**inputs, max_new_tokens=6, do_sample=False)

    def both(policy):
        calls = [lambda: compress(model, Uniform(keep=16)), lambda: context.apply(model, policy)]
        one, other = calls if first == "compressor" else calls[::-1]
        with one() as a, other() as b:
            return model.generate(**inputs, max_new_tokens=6, do_sample=False), (b if first == "compressor" else a).last

    out, _ = both(context.TidalDecode(999, 1))
    assert torch.equal(out, shorter)
    out, report = both(context.TidalDecode(6, 1))
    assert out.shape == shorter.shape
    assert report.tokens == [20 + 5]
    assert report.share < 1
    assert torch.equal(model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, :40], ids)
