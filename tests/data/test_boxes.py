"""Boxes as text: written, read back, compared, and refused where they are none."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou

from vistok.data.boxes import box_text, check_box, overlap, parse_box, self_consistent
from vistok.errors import VistokError

WH = (64, 48)


@pytest.mark.parametrize("decimals", [2, 3])
def test_a_box_is_read_back_to_the_last_digit(decimals):
    box = (3.0, 5.0, 40.0, 47.0)
    found = parse_box(f"it is at {box_text(box, WH, decimals)}.", WH, decimals)
    for value, told, side in zip(found, box, WH * 2, strict=True):
        assert abs(value - told) <= side * 0.5 * 10**-decimals + 1e-9


@pytest.mark.parametrize(
    "answer", ["", "yes", "[0.100,0.200,0.300]", "[0.1,0.2,0.3,0.4]", "[0.100,0.200,0.300,0.400] " * 2]
)
def test_an_answer_that_is_not_one_box_is_none(answer):
    assert parse_box(answer, WH) is None


@pytest.mark.parametrize(
    "box", [(-1, 0, 4, 4), (0, 0, 65, 4), (0, 0, 4, 49), (4, 0, 4, 4), (0, 9, 4, 3), (0, 0, 4), (float("nan"), 0, 4, 4)]
)
def test_a_box_that_is_no_part_of_the_picture_is_refused(box):
    with pytest.raises(VistokError, match="x0"):
        check_box(box, WH)


def test_overlap_is_intersection_over_union():
    corners = torch.rand(20, 4, 2, generator=torch.Generator().manual_seed(0)).double() * 50
    a, b = (
        torch.cat([corners[:, i].minimum(corners[:, i + 1]), corners[:, i].maximum(corners[:, i + 1])], 1)
        for i in (0, 2)
    )
    torch.testing.assert_close(overlap(a, b), box_iou(a, b).diagonal(), atol=1e-9, rtol=0)
    assert overlap(a[0], a[0]) == 1


def test_a_box_without_extent_overlaps_nothing():
    flat = torch.tensor([2.0, 2, 2, 9])
    assert overlap(flat, torch.tensor([0.0, 0, 9, 9])) == 0
    assert overlap(torch.tensor([9.0, 9, 0, 0]), torch.tensor([0.0, 0, 9, 9])) == 0


def test_what_is_kept_agrees_and_was_told():
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    found = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 4.9], [0, 0, 10, 10]])
    assert self_consistent(boxes, found, torch.tensor([True, True, False])).tolist() == [True, False, False]
