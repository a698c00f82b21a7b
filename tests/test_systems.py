"""docs/systems.md is true: what it names exists, its numbers are complete, and no golden system is left out."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex

import pytest
import typer

from tests.golden.test_golden import DEFAULT_FOLDER, load_adapters
from tests.test_layers import ROOT
from vistok.cli.main import app
from vistok.projectors import compressor_class
from vistok.samplers import parse_sampler
from vistok.zoo.registry import card

# Options whose value is a name, and what looks it up.
NAMED = {"--sampler": parse_sampler, "--method": compressor_class, "--model": card, "--tokenizer": card}


def read_tables() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The rows of the two tables, each a mapping of heading to cell."""
    found: list[list[dict[str, str]]] = []
    for line in (ROOT / "docs" / "systems.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            heads = None
        elif heads is None:
            heads = cells
            found.append([])
        elif not line.startswith("|---"):
            assert len(cells) == len(heads), line
            found[-1].append(dict(zip(heads, cells, strict=True)))
    field_map, others = found
    return field_map, others


FIELD_MAP, OTHERS = read_tables()
ROWS = [pytest.param(row, id=row.get("#") or row["system"]) for row in (*FIELD_MAP, *OTHERS)]


def listed(cell: str) -> list[str]:
    """The comma-separated entries of a cell, without back-ticks."""
    return [] if cell == "-" else [entry.strip(" `") for entry in cell.split(",")]


def check_command(line: str) -> None:
    """Every subcommand and option of a ``vistok`` command exists, and every name that an option gets is known."""
    command, words = typer.main.get_command(app), shlex.split(line)[1:]
    while words and hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    options = {name for parameter in command.params for name in parameter.opts}
    for i, word in enumerate(words):
        if word.startswith("--"):
            assert word in options, f"'{line}': no option {word}"
            if word in NAMED:
                NAMED[word](words[i + 1])


def test_the_numbers_of_the_field_map_stand_once_each():
    assert [row["#"] for row in FIELD_MAP] == [str(number) for number in range(1, 71)]


@pytest.mark.parametrize("row", ROWS)
def test_what_a_row_names_exists(row):
    assert row["state"] in ("done", "op", "none")
    assert row.get("lossless", "-") in ("yes", "no", "-")
    assert all(re.fullmatch(r"\d{4}\.\d{5}", number) for number in listed(row["arXiv"]))
    modules, calls = listed(row["module"]), listed(row["call"])
    assert bool(modules) == bool(calls) == (row["state"] != "none")
    for module in modules:
        assert importlib.util.find_spec(module), module
    for call in calls:
        if call.startswith("vistok "):
            check_command(call)
        else:
            module, _, name = call.rpartition(".")
            assert hasattr(importlib.import_module(module), name), call


@pytest.mark.parametrize("row", ROWS)
def test_the_golden_systems_of_a_row_exist(row):
    adapters, _ = load_adapters()
    for system in listed(row["golden"]):
        if row["state"] != "none":
            assert system in adapters, f"no adapter for '{system}'"
        elif DEFAULT_FOLDER.exists():
            assert (DEFAULT_FOLDER / system).is_dir(), f"no golden cases of '{system}'"


def test_every_golden_system_with_an_adapter_is_named():
    adapters, broken = load_adapters()
    assert not broken
    named = {system for row in (*FIELD_MAP, *OTHERS) for system in listed(row["golden"])}
    assert sorted(set(adapters) - named) == []
