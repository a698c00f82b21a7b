"""Trees of the size that pays: none where rows are dear or nothing is foreseen, large where they are cheap."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import tiny
from vistok.errors import VistokError
from vistok.samplers import TokenRecycling, generate
from vistok.samplers.policies.sized import Accuracy, best_size, expected_tokens, interpolated
from vistok.samplers.policies.trees import best_tree
from vistok.samplers.targets.step_cost import WIDTHS, step_cost

FLAT = dict.fromkeys(WIDTHS, 1.0)
STEEP = {width: float(width) for width in WIDTHS}
SURE = [[0.9, 0.05]] * 8


def test_the_empty_tree_is_chosen_where_nothing_else_pays():
    assert best_size(SURE, STEEP) == ()  # two rows cost two steps
    assert best_size([[0.0, 0.0]] * 8, FLAT) == ()
    assert len(best_size(SURE, FLAT)) > 8
    small = best_size(SURE, {width: 1 + 0.05 * width for width in WIDTHS})
    assert 0 < len(small) < len(best_size(SURE, FLAT))


def test_expected_tokens_of_a_tree():
    assert expected_tokens(((0,), (1,), (0, 0)), [[0.5, 0.25], [0.4, 0.1]]) == pytest.approx(1 + 0.5 + 0.25 + 0.2)
    assert expected_tokens(best_tree(SURE, 3), SURE) == pytest.approx(1 + 0.9 + 0.81 + 0.729)


def test_costs_between_those_that_were_measured():
    assert interpolated({1: 1.0, 4: 4.0}, 2) == pytest.approx(2.0)
    assert interpolated({1: 1.0, 4: 4.0}, 9) == 4.0


def test_accuracy_follows_the_text_and_forgets():
    accuracy = Accuracy(3)
    for _ in range(300):
        accuracy.learn(1, True)
    assert accuracy.table()[1][0] < 0.05
    for _ in range(300):
        accuracy.learn(0, True)
    table = accuracy.table()
    assert table[1][0] > 0.9 and table[1][0] >= table[1][1] >= table[1][2]
    assert table[0] == Accuracy(3).table()[0]  # nothing was learnt about unforeseen tokens


def test_a_step_is_measured_once():
    model = tiny()
    cost = step_cost(model)
    assert set(cost) == set(WIDTHS) and min(cost.values()) > 0
    assert step_cost(model) is cost


@pytest.mark.parametrize("cost", [FLAT, STEEP])
def test_greedy_tokens_are_the_targets_at_any_cost(cost, monkeypatch):
    monkeypatch.setattr("vistok.samplers.drafters.recycling.step_cost", lambda *arguments: cost)
    options = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    drafter = TokenRecycling("auto")
    found = generate(tiny(), ragged(), drafter, **options)
    assert torch.equal(found.sequences, tiny().generate(**ragged(), **options))
    if cost is STEEP:
        assert found.stats.forwards.tolist() == [39] * 3
    else:
        assert int(found.stats.forwards.max()) < 30


def test_names_of_trees_are_refused():
    with pytest.raises(VistokError, match="'wide'"):
        TokenRecycling("wide")
