"""Edits of cached text: plans equal to editing a list, re-encoded keys equal to encoding from scratch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.ops import apply_rope
from vistok.ops.reencode import plan_edits, reencode_keys
from vistok.ops.rope import inverse_frequencies


@st.composite
def edited(draw):
    length = draw(st.integers(0, 30))
    cuts = sorted(draw(st.lists(st.integers(0, length), max_size=8)))
    return length, [(a, b, draw(st.integers(0, 5))) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]


@settings(max_examples=100, deadline=None)
@given(edited())
def test_plan_is_what_editing_a_list_gives(case):
    length, edits = case
    text = list(range(length))
    for start, end, new in reversed(edits):
        text[start:end] = [None] * new
    plan = plan_edits(length, torch.tensor(edits, dtype=torch.int64).view(-1, 3))
    assert plan.length == len(text)
    assert plan.inserted.tolist() == [i for i, row in enumerate(text) if row is None]
    assert plan.position.tolist() == [i for i, row in enumerate(text) if row is not None]
    assert plan.kept.tolist() == [row for row in text if row is not None]


@pytest.mark.parametrize("edits", [[[5, 3, 0]], [[2, 6, 1], [4, 8, 0]], [[8, 11, 0]], [[-1, 2, 0]], [[1, 2, -1]]])
def test_bad_edits_are_refused(edits):
    with pytest.raises(VistokError, match="sorted, disjoint"):
        plan_edits(10, torch.tensor(edits))


@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rotary_dim", [16, 8])
def test_reencoded_keys_equal_keys_encoded_at_the_new_positions(layout, dtype, rotary_dim):
    raw = torch.randn(3, 2, 40, 16, dtype=torch.float64)
    frequencies = inverse_frequencies(rotary_dim, 5000.0).double() / 2  # linear scaling 2

    def encode(rows, positions):
        angles = positions[:, None] * frequencies
        table = torch.stack([angles.cos(), angles.sin()], -1)
        return apply_rope(rows.transpose(1, 2), table, layout).transpose(1, 2)

    plan = plan_edits(40, torch.tensor([[3, 7, 1], [20, 20, 9], [33, 40, 0]]))
    cached = encode(raw, torch.arange(40)).to(dtype)
    moved = reencode_keys(cached, plan.kept, plan.position, frequencies, layout)
    expected = encode(raw[:, :, plan.kept], plan.position)
    allowed = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2}[dtype]
    assert moved.dtype == dtype
    torch.testing.assert_close(moved.double(), expected, atol=allowed, rtol=allowed)


def test_moves_by_a_million_positions_stay_exact():
    frequencies = inverse_frequencies(8)
    keys = torch.randn(1, 1, 2, 8)
    rows = torch.arange(2)
    there = reencode_keys(keys, rows, rows + 1_000_003, frequencies)
    back = reencode_keys(there, rows, rows - 1_000_003, frequencies)
    torch.testing.assert_close(back, keys, atol=1e-6, rtol=1e-6)
