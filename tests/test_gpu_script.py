"""benchmarks/gpu.sh: a table that fills up over several calls, whatever fails between."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
TABLE = "# Figures\n\nbefore\n<!-- gpu -->\nold rows\n<!-- /gpu -->\nbehind\n"
pytestmark = pytest.mark.skipif(
    not SCRIPT.is_file() or shutil.which("bash") is None, reason="needs the repository and bash"
)


@pytest.fixture
def call(tmp_path):
    """Calls the script with a stand-in for Python that notes its arguments; rows whose command holds ``fails`` fail."""
    stand_in, table, notes = tmp_path / "python", tmp_path / "table.md", tmp_path / "notes"
    table.write_text(TABLE)

    def run(fails: str = "nothing", text: str | None = None, **environment: str):
        stand_in.write_text(
            f'#!/bin/sh\necho "$*" >> {notes}\ncase "$*" in *{fails}*) echo half; exit 1;; esac\necho "a | figure"\n'
        )
        stand_in.chmod(0o755)
        notes.write_text("")
        if text is not None:
            table.write_text(text)
        own = {"PYTHON": str(stand_in), "FIGURES": str(tmp_path / "figures"), "TINY": "1"} | environment
        ran = subprocess.run(["bash", str(SCRIPT), str(table)], env=os.environ | own, capture_output=True, text=True)
        asked = [line for line in notes.read_text().splitlines() if not line.startswith("-c")]
        return ran, table.read_text(), asked

    return run


def rows(text: str) -> dict[str, str]:
    cells = [line.split(" | ", 2) for line in text.splitlines() if line.startswith("| ")]
    return {name.removeprefix("| "): figure for name, _, figure in cells if name != "| row"}


def test_a_row_that_failed_stays_open_and_is_all_that_a_second_call_runs(call):
    _, text, asked = call(fails="compress")
    assert text.startswith("# Figures\n\nbefore\n<!-- gpu -->") and text.endswith("<!-- /gpu -->\nbehind\n")
    found = rows(text)
    assert len(found) == len(asked) and "old rows" not in text
    assert {name for name, figure in found.items() if figure.startswith("open")} == {"compress"}
    assert "a \\| figure" in found["decode-B"]
    _, text, asked = call()
    assert len(asked) == 1 and "compress" in asked[0]
    assert not [figure for figure in rows(text).values() if figure.startswith("open")]


def test_without_a_gpu_nothing_is_touched(call):
    ran, text, asked = call(fails="is_available", TINY="")
    assert ran.returncode == 2 and "TINY=1" in ran.stderr and text == TABLE and not asked


def test_a_file_without_the_marks_is_refused(call):
    ran, text, asked = call(text="no marks\n")
    assert ran.returncode == 2 and "<!-- gpu -->" in ran.stderr and text == "no marks\n" and not asked
