"""READ's points: where the similarity is, for any picture, and what is refused."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.projectors.grounding.masks import MaskDecoder, mask_iou, mask_losses, point_hints
from vistok.projectors.grounding.points import NEGATIVE, NEUTRAL, POSITIVE, full_map, similarity_points


def bump(side: int, row: int, column: int) -> torch.Tensor:
    line = torch.arange(side, dtype=torch.float32)
    return torch.exp(-((line[:, None] - row) ** 2 + (line - column) ** 2) / 8).flatten()


@pytest.mark.parametrize("hw", [(64, 64), (48, 100), (100, 48), (333, 500), (7, 5)])
def test_positive_points_lie_where_the_map_peaks(hw):
    side, (row, column) = 16, (4, 11)
    found = similarity_points(bump(side, row, column), hw, 20, down_sample=1)
    best = found.xy[found.labels == POSITIVE][0]
    square = min(hw)  # the map covers the centre square
    expected = [(extent - square) / 2 + (at + 0.5) * square / side for extent, at in ((hw[1], column), (hw[0], row))]
    assert torch.allclose(best, torch.tensor(expected), atol=1.5 + max(hw) / side / 2)
    assert (found.xy >= 0).all() and (found.xy[:, 0] <= hw[1] - 1).all() and (found.xy[:, 1] <= hw[0] - 1).all()
    order = [POSITIVE, NEGATIVE, NEUTRAL]
    assert [order.index(label) for label in found.labels.tolist()] == sorted(map(order.index, found.labels.tolist()))


def test_a_flat_map_has_neutral_points_alone():
    found = similarity_points(torch.ones(64), (32, 32), 10, down_sample=1)
    assert len(found.labels) == 10 and (found.labels == NEUTRAL).all() and found.xy.isfinite().all()
    assert full_map(torch.ones(64), (32, 32)).isfinite().all()


def test_points_are_differentiable_in_the_map():
    scores = bump(16, 4, 11).requires_grad_()
    similarity_points(scores, (64, 64), 10).xy.sum().backward()
    assert scores.grad.isfinite().all() and scores.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("tokens", "hw", "count", "smoothing"),
    [(15, (8, 8), 3, 1), (16, (0, 8), 3, 1), (16, (8, 8), 0, 1), (16, (8, 8), 3, 0), (16, (8, 8), 3, 9)],
)
def test_what_has_no_points_is_refused(tokens, hw, count, smoothing):
    with pytest.raises(VistokError):
        similarity_points(torch.rand(tokens), hw, count, down_sample=smoothing)


def test_hints_show_the_points():
    found = similarity_points(bump(16, 4, 11), (64, 64), 12, down_sample=1)
    positive, negative, shown = point_hints(found, full_map(bump(16, 4, 11), (64, 64)), (64, 64))
    assert divmod(int(positive.argmax()), 32)[0] == pytest.approx(9, abs=3)
    assert positive.flatten()[negative.argmax()] < positive.max() / 2
    assert divmod(int(shown.argmax()), 32)[1] == pytest.approx(23, abs=3)


def test_a_perfect_mask_has_no_loss_and_all_of_the_overlap():
    true = torch.zeros(2, 16, 16)
    true[:, 4:9, 3:12] = 1
    bce, dice = mask_losses(60 * (true - 0.5), true)
    assert bce < 1e-6 and dice < 1e-4
    assert mask_iou(true > 0, true > 0).tolist() == [1, 1]
    assert mask_iou(torch.zeros(1, 4, 4) > 0, torch.zeros(1, 4, 4) > 0) == 1
    assert mask_losses(-60 * (true - 0.5), true)[1] > 0.99


def test_the_decoder_draws_at_the_size_of_its_picture():
    decoder = MaskDecoder(8, 4, 16)
    given = (torch.rand(3, 3, 32, 32), torch.rand(3, 16, 8), torch.rand(3, 3, 32, 32), torch.rand(3, 4))
    assert decoder(*given).shape == (3, 32, 32)
