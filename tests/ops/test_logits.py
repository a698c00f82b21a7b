"""Logits to probabilities to tokens: filter semantics, and a draw that follows the law exactly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.ops import combine_guidance, draw, probabilities, process_logits


def naive_filter(row, temperature, top_k, top_p):
    """Token by token, in float64, as the published rule reads."""
    row = row.double() / max(temperature, 1e-5)
    keep = torch.ones_like(row, dtype=torch.bool)
    if top_k > 0:
        keep = row >= row.sort(descending=True).values[min(top_k, len(row)) - 1]
    if top_p < 1:
        law = row.masked_fill(~keep, -torch.inf).softmax(-1)
        total = 0.0
        for token in law.argsort(descending=True):
            if total > top_p:
                keep[token] = False
            total += float(law[token])
    return row.masked_fill(~keep, -torch.inf)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(1, 50),
    temperature=st.floats(0.2, 3.0),
    top_k=st.integers(0, 60),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
def test_filters_match_the_rule(seed, vocabulary, temperature, top_k, top_p):
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    filtered = process_logits(logits, temperature, top_k, top_p)
    expected = torch.stack([naive_filter(row, temperature, top_k, top_p) for row in logits])
    torch.testing.assert_close(filtered, expected)
    torch.testing.assert_close(probabilities(logits, temperature, top_k, top_p).sum(-1), torch.ones(3).double())


def test_ties_at_the_kth_value_are_kept():
    logits = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0]])
    assert process_logits(logits, top_k=2).isfinite().tolist() == [[True, True, True, True, False]]


def test_first_token_over_the_threshold_is_kept():
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    assert process_logits(logits, top_p=0.6).isfinite().tolist() == [True, True, False]
    assert process_logits(logits, top_p=0.0).isfinite().tolist() == [True, False, False]


def test_temperature_zero_is_greedy_and_low_precision_comes_out_in_float32():
    law = probabilities(torch.tensor([1.0, 2.0, 1.9], dtype=torch.bfloat16), temperature=0.0)
    assert law.dtype == torch.float32 and law.tolist() == [0.0, 1.0, 0.0]


def test_input_logits_are_left_alone():
    logits = torch.randn(2, 9)
    before = logits.clone()
    probabilities(logits, 0.7, 3, 0.5)
    assert torch.equal(logits, before)


def test_guidance_ends():
    cond, uncond = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.equal(combine_guidance(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(combine_guidance(cond, uncond, 1.0), cond)


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 1.5}, {"top_p": -0.1}])
def test_bad_options_are_refused(bad):
    with pytest.raises(VistokError, match="sampling needs"):
        process_logits(torch.zeros(3), **bad)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), vocabulary=st.integers(1, 40))
def test_draw_is_the_first_index_whose_cdf_exceeds_the_uniform(seed, vocabulary):
    generator = torch.Generator().manual_seed(seed)
    law = probabilities(torch.randn(4, vocabulary, generator=generator), top_k=7)
    uniform = torch.rand(4, generator=generator, dtype=torch.float64)
    cdf = law.double().cumsum(-1)
    expected = [int((c > u * c[-1]).nonzero()[0]) for c, u in zip(cdf, uniform, strict=True)]
    assert draw(law, uniform).tolist() == expected


def test_draw_never_returns_a_token_of_zero_weight():
    law = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]]).expand(3, 5)
    uniform = torch.tensor([0.0, 0.25, 1.0 - 2.0**-53], dtype=torch.float64)
    assert draw(law, uniform).tolist() == [1, 3, 3]


def test_draw_takes_weights_that_do_not_sum_to_one_and_any_batch_shape():
    weights = torch.tensor([1.0, 0.0, 3.0]).expand(2, 2, 3)
    assert draw(weights, torch.tensor([[0.0, 0.2], [0.3, 0.9]])).tolist() == [[0, 0], [2, 2]]


def test_draw_follows_the_law():
    law = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(draw(law.expand(40_000, 4), uniform), minlength=4) / 40_000
    assert (share - law).abs().max() < 0.01  # five standard deviations
