"""A drafter of text from another package: it goes by its name and is measured beside the others."""

from __future__ import annotations

import json

SOURCE = '''
import torch
from vistok.samplers import TextDrafter
from vistok.samplers.tree import TokenTree, TreeShape


class Stutter(TextDrafter):
    """Drafts the last token again, and again."""

    chain, nodes = True, 3

    def propose(self, run):
        return TokenTree(run.root.repeat(1, self.nodes), TreeShape.chain_of(self.nodes, run.root.device))


def stutter(model, tokenizer=None, draft=None):
    return Stutter()
'''


def test_it_is_measured(install, tmp_path):
    vistok = install(SOURCE, "vistok.text_drafters", "stutter = toy:stutter")
    arguments = ("--methods", "stutter", "--prompts", "1", "--prompt-tokens", "16", "--new-tokens", "8")
    found = vistok("bench", "text", *arguments, "--json", tmp_path / "report.json")
    assert found.returncode == 0, found.stderr
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    mine = [row for row in rows if row["name"] == "stutter"]
    assert mine and all(row["lossless"] and row["same"] == 1 for row in mine)
