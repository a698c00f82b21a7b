"""`attention` against a float64 reference: masks, alignment, grouped heads, dtypes, collapsed prefixes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.naive import naive_attention, tolerance
from vistok.errors import VistokError
from vistok.ops import attention, collapse_prefix


def bottom_right(queries, keys):
    return torch.arange(keys) <= keys - queries + torch.arange(queries)[:, None]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3]),
    queries=st.integers(1, 6),
    past=st.integers(0, 20),
    dim=st.sampled_from([4, 20, 64]),
    causal=st.booleans(),
    masked=st.sampled_from(["no", "bool", "float"]),
    biased=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_attention_matches_float64(seed, batch, kv_heads, group, queries, past, dim, causal, masked, biased, dtype):
    generator = torch.Generator().manual_seed(seed)
    keys = queries + past
    random = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    q = random(batch, kv_heads * group, queries, dim)
    k, v = random(batch, kv_heads, keys, dim), random(batch, kv_heads, keys, dim)
    visible = torch.ones(batch, queries, keys, dtype=torch.bool)
    bias = torch.zeros(batch, 1, queries, keys, dtype=torch.float64)
    mask = None
    if causal:
        visible &= bottom_right(queries, keys)
    if masked == "bool":
        mask = torch.rand(batch, 1, queries, keys, generator=generator) < 0.7
        visible &= mask[:, 0]
    elif masked == "float":
        mask = random(batch, 1, queries, keys)
        bias += mask
    first = None
    if biased:
        first = torch.rand(batch, generator=generator).to(dtype) * 4
        bias[..., 0] += first[:, None, None]
    got = attention(q, k, v, mask=mask, causal=causal, first_key_bias=first)
    expected, _ = naive_attention(q, k, v, visible, bias=bias)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, atol=tolerance(dtype), rtol=tolerance(dtype))


@pytest.mark.parametrize("queries", [1, 5])
@pytest.mark.parametrize("group", [1, 3])
def test_half_precision_over_many_keys(queries, group):
    """The route that leaves SDPA: few bfloat16 queries over a long cache."""
    q = torch.randn(2, 2 * group, queries, 16).bfloat16()
    k, v = torch.randn(2, 2, 600, 16).bfloat16(), torch.randn(2, 2, 600, 16).bfloat16()
    visible = torch.rand(2, queries, 600) < 0.5
    visible[0, 0] = False
    expected, _ = naive_attention(q, k, v, visible & bottom_right(queries, 600))
    got = attention(q, k, v, mask=visible[:, None], causal=True)
    torch.testing.assert_close(got.double(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("masked", ["no", "bool", "float"])
def test_short_sequences_train_in_float32(masked, autocast):
    """Half precision with gradients on a CPU: the result of float32, rounded once, and its gradients."""
    whole = [torch.randn(2, 3, 9, 16).bfloat16().requires_grad_() for _ in range(3)]
    exact = [x.detach().float().requires_grad_() for x in whole]
    mask = {"no": None, "bool": torch.rand(9, 9) < 0.7, "float": torch.randn(2, 1, 9, 9)}[masked]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        got = attention(*whole, mask=mask)
    expected = attention(*exact, mask=mask)
    assert torch.equal(got, expected.bfloat16())
    weights = torch.randn_like(got)
    for loss in ((got * weights).sum(), (expected * weights).sum()):
        loss.backward()
    for half, single in zip(whole, exact, strict=True):
        assert torch.equal(half.grad, single.grad.bfloat16())


def test_dropout_drops_weights():
    q, k, v = torch.randn(3, 1, 2, 4, 8)
    torch.manual_seed(0)
    dropped = torch.stack([attention(q, k, v, dropout=0.5) for _ in range(400)])
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), attention(q, k, v), atol=0.3, rtol=0)


def test_no_keys_give_zeros():
    q, none = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 0, 4)
    assert torch.equal(attention(q, none, none), torch.zeros_like(q))


def test_scale_is_used():
    q, k, v = torch.randn(3, 1, 2, 3, 8)
    expected, _ = naive_attention(q, k, v, torch.ones(1, 3, 3, dtype=torch.bool), scale=1.7)
    torch.testing.assert_close(attention(q, k, v, scale=1.7).double(), expected, atol=1e-5, rtol=1e-5)


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(VistokError, match="multiple"):
        attention(torch.randn(1, 3, 1, 4), *torch.randn(2, 1, 2, 5, 4))


@pytest.mark.parametrize("padded", [False, True])
def test_a_prefix_of_zero_keys_collapses_to_one_row_exactly(padded):
    """LlamaGen's conditioning prefix: attention over all of it equals attention over its collapsed row."""
    prefix, image, queries = 7, 5, 2
    visible = torch.ones(2, prefix, dtype=torch.bool)
    if padded:
        visible[0, :4] = False
    q = torch.randn(2, 3, queries, 8)
    k, v = torch.randn(2, 3, prefix + image, 8), torch.randn(2, 3, prefix + image, 8)
    k[:, :, :prefix] = 0
    columns = torch.cat([visible, torch.ones(2, image, dtype=torch.bool)], 1)
    full = attention(q, k, v, mask=columns[:, None, None], causal=True)
    mean, bias = collapse_prefix(v[:, :, :prefix], visible)
    short_k = torch.cat([torch.zeros(2, 3, 1, 8), k[:, :, prefix:]], 2)
    short_v = torch.cat([mean, v[:, :, prefix:]], 2)
    short = attention(q, short_k, short_v, causal=True, first_key_bias=bias)
    torch.testing.assert_close(short, full, atol=1e-6, rtol=1e-5)
    assert bias.tolist() == pytest.approx([math.log(3 if padded else 7), math.log(7)])
