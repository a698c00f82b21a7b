"""Causal attention by blocks against SDPA, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from vistok.ops import causal_attention


@pytest.mark.parametrize("length", [1, 3, 4, 29])
@pytest.mark.parametrize("kv_heads", [1, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_blocks_are_the_whole(length, kv_heads, padded):
    torch.manual_seed(length)
    q, k, v = (torch.randn(2, h, length, 8, requires_grad=True) for h in (4, kv_heads, kv_heads))
    mask = None
    if padded:  # the first tokens of the second sequence are seen by themselves alone
        mask = torch.ones(2, 1, length, length, dtype=torch.bool)
        mask[1, ..., : length // 2] = False
        mask |= torch.eye(length, dtype=torch.bool)
    visible = torch.ones(length, length, dtype=torch.bool).tril() & (True if mask is None else mask)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
    weight = torch.randn_like(want)
    expected = torch.autograd.grad((want * weight).sum(), (q, k, v))
    got = causal_attention(q, k, v, mask)
    torch.testing.assert_close(got, want)
    for one, other in zip(torch.autograd.grad((got * weight).sum(), (q, k, v)), expected, strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        torch.testing.assert_close(causal_attention(q, k, v, mask), want)
