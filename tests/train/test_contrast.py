"""Captions that are made untrue, and the loss that tells them from true ones."""

from __future__ import annotations

import math

import torch

from vistok.data.scenes import groups, relation, sample_scenes, statements
from vistok.train.tasks.scenes.contrast import ROWS, contrast_loss, decisive, untrue


def holds(statement, scene):
    """Whether a statement is true of a scene of groups that differ in shape."""
    there = {group.shape: group for group in scene}
    if {g.shape for g in statement.groups} != set(there):
        return False
    if statement.with_colour and any(there[g.shape].colour != g.colour for g in statement.groups):
        return False
    if statement.where is None:
        return True
    first, second = (there[g.shape] for g in statement.groups)
    return relation(first.centre, second.centre) == statement.where


def test_untrue_statements_are_false_of_their_scenes():
    scenes = sample_scenes(256, seed=4)
    changed = {"colour": 0, "place": 0, "either": 0}
    for said, scene in zip(statements(scenes), groups(scenes), strict=True):
        assert holds(said, scene)
        others = [untrue(said, variant) for variant in range(8)]
        if others[0] is None:
            told = said.with_colour and len(said.groups) > 1
            assert said.where is None
            assert not told or said.groups[0].colour == said.groups[1].colour
            continue
        assert not any(holds(other, scene) for other in others)
        kinds = {"place" if other.where != said.where else "colour" for other in others}
        changed["either" if len(kinds) == 2 else kinds.pop()] += 1
    assert all(count > 5 for count in changed.values()), changed


def test_a_caption_with_two_groups_of_one_colour_cannot_be_made_untrue_by_colours():
    said = [s for s in statements(sample_scenes(256, seed=4)) if s.where is None and len(s.groups) == 2]
    alike = [s for s in said if s.groups[0].colour == s.groups[1].colour]
    assert alike
    assert all(untrue(s) is None for s in alike)


def test_the_rows_in_which_the_first_object_begins():
    begins = torch.tensor([[30, 10, -1, 25], [-1, -1, -1, -1], [35, -1, -1, -1]], dtype=torch.int16)
    rows = decisive(begins, 36, 6)
    assert ROWS == 3
    assert rows[0].nonzero().flatten().tolist() == list(range(10, 24))  # from 10, in row 1, to the end of row 3
    assert not rows[1].any()
    assert rows[2].nonzero().flatten().tolist() == [35]


def test_half_of_the_lattices_from_the_first_object_on():
    begins = torch.tensor([[30, 10, -1, 25], [-1, -1, -1, -1], [35, -1, -1, -1]], dtype=torch.int16)
    telling = decisive(begins, 36, 6, raster=False)
    assert telling[0].nonzero().flatten().tolist() == list(range(10, 18))
    assert not telling[1:].any()
    assert decisive(begins, 9, 6, raster=False).shape == (3, 9)


def test_the_contrast_is_the_posterior_of_the_right_caption():
    own, other = torch.tensor([-100.0, -50.0, -7.0]), torch.tensor([-103.0, -50.0, -1.0])
    counts = torch.tensor([True, True, False])
    expected = (math.log1p(math.exp(-3)) + math.log(2)) / 2
    assert math.isclose(contrast_loss(own, other, counts).item(), expected, rel_tol=1e-6)
    assert contrast_loss(own, other, torch.zeros(3, dtype=torch.bool)) == 0


def test_the_true_law_minimises_the_contrast():
    torch.manual_seed(0)
    truth = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])  # of a picture given either caption
    logits = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.Adam([logits], 0.05)
    for _ in range(400):
        law = logits.log_softmax(-1)
        loss = sum(
            truth[c, x] * (contrast_loss(law[c, x][None], law[1 - c, x][None], torch.tensor([True])) - law[c, x])
            for c in range(2)
            for x in range(3)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(logits.softmax(-1).detach(), truth, rtol=0, atol=5e-3)
