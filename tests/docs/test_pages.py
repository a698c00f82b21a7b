"""Pages that teach are run: every block of Python and of commands, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.test_cli import vistok

sybil = pytest.importorskip("sybil", reason="pip install sybil")
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser  # noqa: E402

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "quickstart.md", *sorted((DOCS / "tutorials").glob("*.md"))]


def run_commands(example) -> str | None:
    """Runs the commands of a block inside this process; returns what the first one that fails says."""
    for line in example.parsed.splitlines():
        program, *words = shlex.split(line)
        assert program == "vistok", line
        done = vistok(*words)
        if done.returncode:
            return f"{line}\n{done.stderr}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_does_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsers = [PythonCodeBlockParser(), CodeBlockParser(language="bash", evaluator=run_commands)]
    examples = list(sybil.Sybil(parsers=parsers).parse(page).examples())
    assert examples, "the page has nothing to run"
    for example in examples:
        example.evaluate()


def test_every_layer_has_a_tutorial():
    said = " ".join(page.read_text() for page in PAGES)
    for layer in ("ops", "tokenizers", "samplers", "projectors", "context", "eval", "data", "vistok train"):
        assert re.search(rf"vistok\.{layer}|{layer}", said), layer


def test_the_site_lists_every_page():
    listed = (DOCS.parent / "mkdocs.yml").read_text()
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert not {page for page in pages if page not in listed and not page.startswith("log/")}
