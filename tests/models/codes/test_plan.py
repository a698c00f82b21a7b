"""Plans: what a layout or a rule of transformers forces, and what is left for codes."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.codes import PicturePlan

CODES = torch.tensor([12, 10, 11])  # ids in the order of the codebook


def test_a_raster_has_its_line_ends_and_what_stands_behind():
    plan = PicturePlan.raster(CODES, 2, 3, line_end=5, behind=[6, 7])
    assert plan.ids.tolist() == [12, 10, 11, 5, 6, 7]
    assert plan.places.tolist() == [-1, -1, -1, 3, -1, -1, -1, 3, 4, 5]
    assert (plan.line, plan.columns, plan.codes, plan.special) == (4, 3, 3, 3)
    drawn = torch.tensor([[0, 1, 2, 3, 2, 1, 0, 3, 4, 5]])
    assert plan.grid(drawn).tolist() == [[[0, 1, 2], [2, 1, 0]]]


@pytest.mark.parametrize(
    ("rows", "columns", "line_end", "behind"), [(2, 3, 5, [6, 7]), (3, 2, 5, []), (2, 2, None, [6])]
)
def test_a_rule_is_read_as_the_plan_that_it_enforces(rows, columns, line_end, behind):
    plan, prompt = PicturePlan.raster(CODES, rows, columns, line_end, behind), torch.tensor([1, 2])
    tokens = [-1 if entry < 0 else int(plan.ids[entry]) for entry in plan.places]

    def allowed(row, text):
        token = tokens[len(text) - 2] if len(text) - 2 < len(tokens) else 9
        return CODES.tolist() if token < 0 else (torch.tensor([token]),)

    ends = {behind[-1]} if behind else set()
    found = PicturePlan.of_function(CODES, allowed, prompt, 0, len(tokens) + (4 if behind else 0), ends)
    assert found.same(plan)


def test_a_rule_that_looks_at_the_forced_tokens_is_given_them():
    def allowed(row, text):
        return [7] if text[-1] == 5 else [5] if len(text) == 3 else CODES.tolist()

    found = PicturePlan.of_function(CODES, allowed, torch.tensor([1, 2]), 0, 4)
    assert found.ids[found.places[1:3]].tolist() == [5, 7]


def test_a_rule_that_leaves_some_codes_out_is_no_plan():
    with pytest.raises(VistokError, match="place 0"):
        PicturePlan.of_function(CODES, lambda row, text: [10, 11], torch.tensor([1]), 0, 3)
