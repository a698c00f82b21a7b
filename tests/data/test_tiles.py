"""Tiles cover a picture of any size, overlap as much as was asked for, and go together without seams."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.tiles import Tiling
from vistok.errors import VistokError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 24), st.data())
def test_what_was_cut_goes_together_again(height, width, side, data):
    tiling = Tiling(height, width, side, data.draw(st.integers(0, side // 2)))
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    tiles = tiling.cut(image)
    assert tiles.shape == (tiling.count, 3, side, side) and len(tiling.corners) == tiling.count
    torch.testing.assert_close(tiling.join(tiles), image)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(2, 40), st.data())
def test_neighbours_share_the_least_overlap_and_the_last_ends_with_the_picture(length, side, data):
    overlap = data.draw(st.integers(0, side // 2))
    starts = sorted({left for _, left in Tiling(side, length, side, overlap).corners})
    assert starts[0] == 0 and starts[-1] == max(0, length - side)
    assert all(before + side - after >= overlap for before, after in pairwise(starts))


def test_an_error_of_one_tile_fades_into_its_neighbours():
    tiling = Tiling(100, 130, 32, 8)
    flat = torch.zeros(3, 100, 130)
    wrong = torch.rand(tiling.count, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    joined = tiling.join(tiling.cut(flat) + wrong)
    # Without overlap the largest step between two pixels is that between two tiles.
    for axis in (1, 2):
        assert joined.diff(dim=axis).abs().max() < 1 / 7
    bare = Tiling(96, 128, 32, 0)
    assert bare.join(bare.cut(torch.zeros(3, 96, 128)) + wrong[: bare.count]).diff(dim=2).abs().max() > 0.4


@pytest.mark.parametrize("shape", [(0, 5, 4, 1), (5, 5, 0, 0), (5, 5, 8, 5), (5, 5, 8, -1)])
def test_tiles_that_cannot_be(shape):
    with pytest.raises(VistokError, match="tiles"):
        Tiling(*shape)
