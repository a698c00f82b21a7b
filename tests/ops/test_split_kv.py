"""Split-KV attention: partials, their merge in any order, and the stream-K partition."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.naive import naive_attention
from vistok.ops.split_kv import merge_partials, partial_attention, stream_k_partition


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), keys=st.integers(0, 40), data=st.data())
def test_any_split_merges_to_attention_over_all_keys(seed, keys, data):
    """Unequal, empty and fully masked parts, in any order, give the float64 result of the whole."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, 3, 8, generator=generator)
    k, v = (torch.randn(2, 2, keys, 8, generator=generator) for _ in "kv")
    visible = torch.rand(2, 3, keys, generator=generator) < 0.5
    cuts = sorted(data.draw(st.lists(st.integers(0, keys), max_size=5)))
    edges = list(zip([0, *cuts], [*cuts, keys], strict=True))
    parts = [
        partial_attention(q, k[:, :, a:b], v[:, :, a:b], visible[..., a:b])
        for a, b in data.draw(st.permutations(edges))
    ]
    out, lse = merge_partials(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))
    expected, expected_lse = naive_attention(q, k, v, visible)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse.double(), expected_lse, atol=1e-5, rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    tiles=st.lists(st.integers(0, 50), max_size=12),
    workers=st.integers(1, 40),
)
def test_partition_covers_every_tile_once_and_evenly(tiles, workers):
    total = sum(tiles)
    table = stream_k_partition(torch.tensor(tiles, dtype=torch.int32), workers)
    loads = table.end - table.start
    assert len(loads) == min(workers, total)
    if total == 0:
        return
    assert loads.max() - loads.min() <= 1
    assert table.start[0] == 0 and table.end[-1] == total
    assert torch.equal(table.start[1:], table.end[:-1])
    covered = torch.zeros(len(tiles), max(tiles), dtype=torch.int64)
    work = torch.zeros_like(loads)
    for worker, output, first, end, is_first, is_last in table.segments.tolist():
        assert first < end
        covered[output, first:end] += 1
        work[worker] += end - first
        assert bool(is_first) == (first == 0) and bool(is_last) == (end == tiles[output])
    assert covered.tolist() == [[1] * n + [0] * (max(tiles) - n) for n in tiles]
    assert torch.equal(work, loads)
