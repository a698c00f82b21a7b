"""Settings of all tests: one thread, because on a busy machine every parallel region can wait for a time slice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from tests.golden.case import CENSUS

torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts the golden cases that nothing compares yet, by system and kind."""
    passed, skipped = (golden_cases(terminalreporter.stats.get(outcome, ())) for outcome in ("passed", "skipped"))
    if not skipped:
        return
    kinds: dict[str, list[str]] = {}
    for (system, kind), count in sorted(skipped.items()):
        kinds.setdefault(system, []).append(f"{kind} {count}")
    terminalreporter.section("golden cases without an adapter")
    for system, counts in kinds.items():
        terminalreporter.write_line(f"{system}: {', '.join(counts)}")
    terminalreporter.write_line(
        f"{sum(skipped.values())} golden cases of {len(kinds)} systems skipped, {sum(passed.values())} passed"
    )


def golden_cases(reports: Iterable[Any]) -> Counter[tuple[str, str]]:
    """How many golden cases of each system and kind there are among reports, which say so themselves."""
    properties = (dict(getattr(report, "user_properties", ())) for report in reports)
    return Counter(tuple(found[CENSUS]) for found in properties if CENSUS in found)
