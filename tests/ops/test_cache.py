"""The KV cache: common and ragged writes, commits of an accepted path, crops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.ops import KVCache


def rows(batch, heads, length, dim, generator):
    return torch.randn(2, batch, heads, length, dim, generator=generator)


def write_all(cache, new):
    """The same k, v for every layer, shifted by the layer's number."""
    return [cache.write(layer, new[0] + layer, new[1] - layer) for layer in range(cache.keys.shape[0])]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 4), data=st.data())
def test_cache_holds_what_a_list_of_rows_would(seed, batch, data):
    """Any sequence of writes, ragged commits and crops equals the same edits on Python lists."""
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(2, batch, 64, 3, 4)
    model = [[] for _ in range(batch)]
    for _ in range(data.draw(st.integers(1, 6))):
        width = data.draw(st.integers(1, 6))
        new = rows(batch, 3, width, 4, generator)
        write_all(cache, new)
        action = data.draw(st.sampled_from(["advance", "advance_rows", "commit", "commit_same", "crop"]))
        if action == "advance":
            cache.advance(width)
            kept = [list(range(width))] * batch
        elif action == "advance_rows":
            counts = [data.draw(st.integers(0, width)) for _ in range(batch)]
            cache.advance(torch.tensor(counts))
            kept = [list(range(count)) for count in counts]
        elif action in ("commit", "commit_same"):
            kept = [sorted(data.draw(st.sets(st.integers(0, width - 1)))) for _ in range(batch)]
            kept = kept[:1] * batch if action == "commit_same" else kept
            path = torch.tensor([nodes + [-1] * (width - len(nodes)) for nodes in kept])
            cache.commit(path, torch.tensor([len(nodes) for nodes in kept]))
        else:
            kept = [[]] * batch
            cut = [data.draw(st.integers(0, len(sequence))) for sequence in model]
            cache.crop(torch.tensor(cut))
            model = [sequence[:n] for sequence, n in zip(model, cut, strict=True)]
        for b in range(batch):
            model[b] += [new[:, b, :, i] for i in kept[b]]
        assert cache.lengths.tolist() == [len(sequence) for sequence in model]
        assert cache.bound == max(len(sequence) for sequence in model)
    for b, sequence in enumerate(model):
        if sequence:
            expected = torch.stack(sequence, dim=2)  # [2, H, S, D]
            for layer in range(2):
                assert torch.equal(cache.keys[layer, b, :, : len(sequence)], expected[0] + layer)
                assert torch.equal(cache.values[layer, b, :, : len(sequence)], expected[1] - layer)


def test_write_returns_old_and_new_rows_as_views():
    cache = KVCache(1, 2, 8, 1, 4)
    first, second = rows(2, 1, 3, 4, None), rows(2, 1, 2, 4, None)
    write_all(cache, first)
    cache.advance(3)
    k, v = cache.write(0, *second)
    assert torch.equal(k, torch.cat([first[0], second[0]], 2)) and torch.equal(v, torch.cat([first[1], second[1]], 2))
    assert k.data_ptr() == cache.keys.data_ptr()


def test_lengths_that_meet_again_take_the_common_path():
    cache = KVCache(1, 2, 8, 1, 4)
    write_all(cache, rows(2, 1, 3, 4, None))
    cache.advance(torch.tensor([1, 3]))
    assert cache.common_length is None
    cache.crop(torch.tensor([1, 1]))
    assert cache.common_length == 1
    cache.crop(0)
    assert cache.common_length == 0


def test_commit_at_the_last_row_of_a_full_cache():
    cache = KVCache(1, 2, 4, 1, 1)
    write_all(cache, rows(2, 1, 2, 1, None))
    cache.advance(2)
    new = rows(2, 1, 2, 1, None)
    write_all(cache, new)
    cache.commit(torch.tensor([[1, -1], [0, 1]]), torch.tensor([1, 2]))
    assert cache.lengths.tolist() == [3, 4]
    assert torch.equal(cache.keys[0, 0, 0, 2], new[0, 0, 0, 1])
    assert torch.equal(cache.keys[0, 1, 0, 2:], new[0, 1, 0])


@pytest.mark.parametrize("ragged", [False, True])
def test_a_full_cache_says_what_length_is_needed(ragged):
    cache = KVCache(1, 2, 4, 1, 4)
    cache.advance(torch.tensor([1, 3]) if ragged else 3)
    with pytest.raises(VistokError, match="length=5"):
        cache.write(0, *rows(2, 1, 2, 4, None))


def test_narrow_shares_rows_but_not_lengths():
    cache = KVCache(1, 3, 8, 1, 4)
    write_all(cache, rows(3, 1, 2, 4, None))
    cache.advance(2)
    part = cache.narrow(2)
    new = rows(2, 1, 1, 4, None)
    write_all(part, new)
    part.advance(1)
    assert torch.equal(cache.keys[0, :2, :, 2:3], new[0])
    assert cache.lengths.tolist() == [2, 2, 2] and part.lengths.tolist() == [3, 3] and cache.bound == 2


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ragged", [False, True])
def test_rows_of_any_dtype_are_kept_in_the_caches(kept, dtype, ragged):
    cache = KVCache(1, 2, 4, 1, 3, kept)
    cache.write(0, torch.zeros(2, 1, 2, 3), torch.zeros(2, 1, 2, 3))
    cache.advance(torch.tensor([1, 2]) if ragged else 1)
    rows = torch.randn(2, 1, 1, 3, dtype=dtype)
    keys, values = cache.write(0, rows, -rows)
    at = [1, 2] if ragged else [1, 1]
    for b in range(2):
        assert torch.equal(keys[b, :, at[b]], rows[b, :, 0].to(kept))
        assert torch.equal(values[b, :, at[b]], -rows[b, :, 0].to(kept))
