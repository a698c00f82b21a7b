"""Rotary tables and rotation: relative positions, LlamaGen's zero prefix, both layouts, partial rotation."""

import pytest
import torch

from vistok.errors import VistokError
from vistok.ops import apply_rope, rope_1d, rope_2d


def test_rope_1d_scores_depend_on_the_distance_only():
    table = rope_1d(40, 16)
    q, k = torch.randn(2, 16).double().view(2, 1, 1, 1, 16)
    at = lambda x, p: apply_rope(x, table[p : p + 1])  # noqa: E731
    near = (at(q, 9) * at(k, 4)).sum()
    far = (at(q, 35) * at(k, 30)).sum()
    assert torch.allclose(near, far, atol=1e-5)
    assert not torch.allclose(near, (at(q, 35) * at(k, 31)).sum(), atol=1e-3)


def test_rope_2d_turns_first_half_by_row_second_by_column():
    table = rope_2d(3, 5, 8, prefix=2)
    assert table.shape == (2 + 15, 4, 2) and table.dtype == torch.float32
    grid = table[2:].view(3, 5, 4, 2)
    line = rope_1d(5, 4)
    assert torch.allclose(grid[:, :, :2], line[:3, None].expand(3, 5, 2, 2))
    assert torch.allclose(grid[:, :, 2:], line[None].expand(3, 5, 2, 2))


def test_prefix_rows_zero_the_vector():
    table = rope_2d(2, 2, 8, prefix=3)
    x = torch.randn(2, 7, 3, 8)
    rotated = apply_rope(x, table)
    assert torch.equal(rotated[:, :3], torch.zeros(2, 3, 3, 8))
    assert torch.allclose(rotated[:, 3:].norm(dim=-1), x[:, 3:].norm(dim=-1), atol=1e-5)


def test_layouts_are_the_same_rotation_of_permuted_features():
    x, table = torch.randn(2, 6, 3, 12), rope_1d(6, 12)
    permuted = x.unflatten(-1, (6, 2)).transpose(-1, -2).flatten(-2)
    expected = apply_rope(x, table).unflatten(-1, (6, 2)).transpose(-1, -2).flatten(-2)
    assert torch.allclose(apply_rope(permuted, table, "half"), expected, atol=1e-6)


def test_half_layout_is_hugging_face_llama():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    x, table = torch.randn(2, 6, 3, 12), rope_1d(6, 12)
    cos, sin = (table[..., i].repeat(1, 2)[None] for i in (0, 1))
    theirs, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    assert torch.allclose(apply_rope(x, table, "half"), theirs.transpose(1, 2), atol=1e-6)


def test_per_sequence_tables_partial_rotation_and_dtype():
    x, table = torch.randn(2, 4, 3, 16), rope_1d(10, 8)
    positions = torch.tensor([[0, 1, 2, 3], [5, 6, 6, 9]])
    rotated = apply_rope(x, table[positions])
    assert torch.equal(rotated[..., 8:], x[..., 8:])
    assert torch.equal(rotated[1:], apply_rope(x[1:], table[positions[1]]))
    assert apply_rope(x.bfloat16(), table[:4]).dtype == torch.bfloat16


@pytest.mark.parametrize("call", [lambda: rope_1d(4, 7), lambda: rope_2d(2, 2, 6)])
def test_head_dims_that_cannot_be_paired_are_refused(call):
    with pytest.raises(VistokError, match="head_dim"):
        call()


def test_unknown_layout_is_refused():
    with pytest.raises(VistokError, match="interleaved"):
        apply_rope(torch.randn(1, 2, 1, 4), rope_1d(2, 4), "quarters")
