"""A run says which golden cases nothing compares, and CI does not pass without the cases."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.conftest import pytest_terminal_summary
from tests.golden import test_golden
from tests.golden.case import CENSUS


def report(*case):
    return SimpleNamespace(user_properties=[(CENSUS, list(case))] if case else [])


def census(**stats):
    lines = []
    pytest_terminal_summary(SimpleNamespace(stats=stats, section=lines.append, write_line=lines.append))
    return lines


def test_skipped_cases_are_counted_by_system_and_kind():
    skipped = [report("ppd", "tree"), report("aded", "walk"), report(), report("aded", "draw"), report("aded", "walk")]
    lines = census(skipped=skipped, passed=[report("sjd", "step"), report()])
    assert lines[1:-1] == ["aded: draw 1, walk 2", "ppd: tree 1"]
    assert lines[-1].startswith("4 golden cases of 2 systems") and "1 passed" in lines[-1]


def test_nothing_is_printed_where_nothing_was_skipped():
    assert census(passed=[report("sjd", "step")], skipped=[report()]) == []


@pytest.fixture
def no_cases(tmp_path, monkeypatch):
    monkeypatch.setattr(test_golden, "DEFAULT_FOLDER", tmp_path)
    monkeypatch.delenv("VISTOK_GOLDEN", raising=False)
    monkeypatch.delenv("CI", raising=False)


def test_without_cases_a_run_is_skipped(no_cases):
    (only,) = test_golden.find_cases()
    assert [mark.name for mark in only.marks] == ["skip"]


def test_without_cases_ci_fails(no_cases, monkeypatch):
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.UsageError, match="golden"):
        test_golden.find_cases()
