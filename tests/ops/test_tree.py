"""Token trees: ancestor words, depths, masks, and attention over drafts behind ragged caches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.naive import naive_attention, tolerance
from vistok.ops import TreeMask, attention
from vistok.ops.split_kv import decode_attention
from vistok.ops.tree import PADDING, ROOT, ancestor_mask, ancestor_words, tree_depths


def random_parents(generator, batch, nodes, ragged):
    """Random forests; with `ragged`, sequence b ends in padding (the last may be empty)."""
    parents = torch.empty(batch, nodes, dtype=torch.int64)
    for b in range(batch):
        for i in range(nodes):
            parents[b, i] = torch.randint(ROOT, i, (), generator=generator) if i else ROOT
        if ragged:
            parents[b, int(torch.randint(0, nodes + 1, (), generator=generator)) :] = PADDING
    return parents


def walk(parents):
    """Ancestors of every node by following parents one at a time."""
    mask = torch.zeros(*parents.shape, parents.shape[1], dtype=torch.bool)
    for b, row in enumerate(parents.tolist()):
        for i, parent in enumerate(row):
            if parent != PADDING:
                mask[b, i, i] = True
                while parent != ROOT:
                    mask[b, i, parent] = True
                    parent = row[parent]
    return mask


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), nodes=st.integers(1, 140), ragged=st.booleans())
def test_ancestors_depths_and_words(seed, nodes, ragged):
    parents = random_parents(torch.Generator().manual_seed(seed), 2, nodes, ragged)
    expected = walk(parents)
    assert torch.equal(ancestor_mask(parents), expected)
    assert torch.equal(tree_depths(parents), expected.sum(-1) - 1)
    words = ancestor_words(parents)
    assert words.shape == (2, nodes, -(-nodes // 64))
    for i in range(nodes):
        bits = sum((int(w) & (2**64 - 1)) << (64 * n) for n, w in enumerate(words[0, i]))
        assert bits == sum(1 << j for j in range(nodes) if expected[0, i, j])
    assert torch.equal(TreeMask(torch.zeros(2).long(), nodes, words).draft(), expected)


def test_chain_needs_no_words():
    prefix = torch.tensor([4, 0])
    chain = torch.arange(-1, 5).expand(2, 6)
    assert torch.equal(TreeMask(prefix, 6).draft(), TreeMask.from_parents(chain, prefix).draft())


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 3),
    nodes=st.integers(1, 9),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 3]),
    ragged_tree=st.booleans(),
    ragged_prefix=st.booleans(),
    biased=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_tree_attention_matches_float64_and_ignores_poisoned_padding(
    seed, batch, nodes, kv_heads, group, ragged_tree, ragged_prefix, biased, dtype
):
    generator = torch.Generator().manual_seed(seed)
    parents = random_parents(generator, batch, nodes, ragged_tree)
    prefix = torch.randint(0, 30, (batch if ragged_prefix else 1,), generator=generator).expand(batch)
    shape = (batch, kv_heads, 45, 16)
    q = torch.randn(batch, kv_heads * group, nodes, 16, generator=generator).to(dtype)
    k, v = (torch.randn(*shape, generator=generator).to(dtype) for _ in "kv")
    exists = walk(parents).any(1)
    for b in range(batch):
        unused = prefix[b] + int(exists[b].sum())
        k[b, :, unused:] = v[b, :, unused:] = torch.nan
    visible = torch.zeros(batch, nodes, 45, dtype=torch.bool)
    for b in range(batch):
        visible[b, exists[b], : prefix[b]] = True
        visible[b, :, prefix[b] : prefix[b] + nodes] = walk(parents)[b]
    bias = torch.rand(batch, generator=generator) * 3 if biased else None
    extra = torch.zeros(batch, 1, 1, 45, dtype=torch.float64)
    if biased:
        extra[..., 0] = bias.to(dtype).double()[:, None, None]
    expected, expected_lse = naive_attention(q, k, v, visible, bias=extra)
    mask = TreeMask.from_parents(parents, prefix)
    out, lse = decode_attention(q, k, v, mask, first_key_bias=None if bias is None else bias.to(dtype))
    allowed = {"atol": tolerance(dtype), "rtol": tolerance(dtype)}
    torch.testing.assert_close(out.double(), expected, **allowed)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(attention(q, k, v, mask=mask, first_key_bias=bias).double(), expected, **allowed)


def test_tree_over_a_cache_of_sequences_without_any_row():
    q, k, v = torch.randn(2, 2, 3, 8), torch.full((2, 2, 5, 8), torch.nan), torch.full((2, 2, 5, 8), torch.nan)
    mask = TreeMask.from_parents(torch.full((2, 3), PADDING), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(attention(q, k, v, mask=mask), torch.zeros_like(q))
    out, lse = decode_attention(q, k, v, mask)
    assert torch.equal(out, torch.zeros_like(q)) and lse.isneginf().all()


@pytest.mark.parametrize("common", [True, False])
def test_chain_equals_causal_attention_of_each_sequence(common):
    q, k, v = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 20, 8), torch.randn(2, 2, 20, 8)
    prefix = torch.tensor([7, 7] if common else [7, 12])
    got = attention(q, k, v, mask=TreeMask(prefix, 3))
    for b in range(2):
        rows = int(prefix[b]) + 3
        alone = attention(q[b : b + 1], k[b : b + 1, :, :rows], v[b : b + 1, :, :rows], causal=True)
        torch.testing.assert_close(got[b : b + 1], alone)
