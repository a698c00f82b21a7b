"""Concentric causal attention: rings, positions and visibility, cell by cell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.ops.concentric import concentric_layout, concentric_mask, concentric_mask_mod, ring_index


@settings(max_examples=40, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), before=st.integers(0, 3), between=st.integers(0, 3))
def test_two_images_in_a_prompt(height, width, before, between):
    """Positions and mask against their definition, token by token."""
    second = before + height * width + between
    length = second + 4 + 2
    layout = concentric_layout(length, [(before, height, width), (second, 2, 2)])
    position, owner, ring = [], [], []
    free = 0
    for start, h, w in ((before, height, width), (second, 2, 2)):
        while len(position) < start:
            position.append(free)
            owner.append(None)
            ring.append(None)
            free += 1
        for r in range(h):
            for c in range(w):
                depth = min(r, h - 1 - r, c, w - 1 - c)
                position.append(free + depth)
                owner.append(start)
                ring.append(depth)
        free += (min(h, w) + 1) // 2
    position += [free, free + 1]
    owner += [None, None]
    ring += [None, None]
    assert layout.position.tolist() == position
    mask = concentric_mask(layout)
    for q in range(length):
        for k in range(length):
            inside = owner[q] is not None and owner[q] == owner[k]
            assert mask[q, k] == (ring[q] >= ring[k] if inside else k <= q)


def test_mask_mod_serves_flex_attention():
    """FlexAttention calls it with scalar indices under vmap."""
    layout = concentric_layout(20, [(3, 3, 4)])
    mod, order, zero = concentric_mask_mod(layout), torch.arange(20), torch.tensor(0)
    over_keys = torch.vmap(mod, in_dims=(None, None, None, 0))
    mask = torch.vmap(over_keys, in_dims=(None, None, 0, None))(zero, zero, order, order)
    assert torch.equal(mask, concentric_mask(layout))


def test_ring_index_of_an_odd_grid():
    assert ring_index(3, 5).tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("images", [[(0, 2, 2), (3, 1, 1)], [(8, 2, 2)], [(-1, 1, 1)], [(0, 0, 3)]])
def test_images_that_do_not_fit_are_refused(images):
    with pytest.raises(VistokError, match="image"):
        concentric_layout(10, images)
