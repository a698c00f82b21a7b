"""What all comparisons share: turns, figures with honest intervals, and tables."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vistok.errors import VistokError
from vistok.eval.decoding.comparison import Column, Entry, Row, Trial, choose_entries, run_in_turn, table, time_figures
from vistok.eval.decoding.estimate import Estimate, paired_estimate, ratio_estimate

ENTRIES = [Entry("plain", None), Entry("tree 8", None), Entry("tree 16", None, lossless=False)]


def test_every_unit_is_done_by_all_before_the_next():
    order, done = [], []
    trials = [Trial(entry) for entry in ENTRIES]

    def decode(trial, unit):
        with trial.timed():
            order.append((unit, trial.entry.name))
        return unit * 2

    run_in_turn(trials, [1, 2], decode, lambda: done.append(1))
    assert order == [(unit, entry.name) for unit in (1, 2) for entry in ENTRIES]
    assert len(done) == 6
    assert all(trial.results == [2, 4] and len(trial.seconds) == len(trial.cpu_seconds) == 2 for trial in trials)


def test_entries_are_chosen_by_words_beside_the_baseline():
    assert choose_entries(ENTRIES, ["tree"], "method") == ENTRIES
    assert choose_entries(ENTRIES, ["16", "plain"], "method") == [ENTRIES[0], ENTRIES[2]]
    with pytest.raises(VistokError, match=r"unknown method 'tre 8'.*tree 8"):
        choose_entries(ENTRIES, ["tre 8"], "method")


def test_speed_ups_are_ratios_over_the_same_units():
    slow, fast = Trial(ENTRIES[0]), Trial(ENTRIES[1])
    slow.seconds, slow.cpu_seconds = [2.0, 4.0], [2.0, 2.0]
    fast.seconds, fast.cpu_seconds = [1.0, 2.0], [1.0, 4.0]
    figures = time_figures(slow, fast)
    assert figures["seconds"] == 1.5
    assert figures["speed_up"] == Estimate(2.0, 2.0, 2.0)  # every unit has the ratio of the whole
    assert figures["cpu_speed_up"] == Estimate(0.8, 0.5, 2.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        forwards = random.integers(5, 15, 60)
        tokens = random.poisson(2.0 * forwards)
        estimate = ratio_estimate(tokens, forwards, resamples=300, seed=seed)
        hits += estimate.low <= 2.0 <= estimate.high
    assert 0.88 <= hits / 200 <= 0.99


def test_estimates_of_few_units():
    assert ratio_estimate([3], [2]) == Estimate(1.5, 1.5, 1.5)
    assert ratio_estimate([0, 1], [0, 1]).low == 0  # a resample without a denominator
    rates = paired_estimate(lambda a, b, c, d: a * d / (b * c), [4, 4], [2, 2], [1, 1], [2, 2])
    assert str(rates) == "4.00 [4.00, 4.00]"


ROWS = [
    Row("plain", True, {"forwards": 6.0, "rate": None, "speed": Estimate(1, 1, 1)}, scores={"FD": 12.0}),
    Row("tree 16", False, {"forwards": 3.0, "rate": 0.5, "speed": Estimate(2, 1.5, 3)}, scores={"FD": 8.25}),
]


def test_a_table_lines_up_and_is_markdown():
    columns = [Column("forwards", "forwards", ".1f"), Column("rate", "rate"), Column("speed-up", "speed")]
    lines = table(ROWS, columns, "method").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert len({len(line) for line in lines}) == 1
    assert cells[0] == ["method", "lossless", "forwards", "rate", "speed-up", "FD"]
    assert set("".join(cells[1])) == {"-"} and all(len(cell) >= 3 for cell in cells[1])
    assert cells[2] == ["plain", "yes", "6.0", "", "1.00 [1.00, 1.00]", "12.00"]
    assert cells[3] == ["tree 16", "no", "3.0", "0.50", "2.00 [1.50, 3.00]", "8.25"]


def test_rows_become_plain_values():
    found = json.loads(json.dumps([row.to_dict() for row in ROWS]))
    assert found[1]["speed"] == {"value": 2, "low": 1.5, "high": 3}
    assert found[1]["scores"] == {"FD": 8.25} and found[0]["rate"] is None
    assert "kind" not in found[0]
    assert Row("plain", True, {}, "code").to_dict() == {"name": "plain", "kind": "code", "lossless": True}
