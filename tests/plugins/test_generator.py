"""A family of generators, and a sampler, of another package: one file and an entry point each, and they paint."""

from __future__ import annotations

import json

from PIL import Image

FAMILY = '''
"""A generator whose every code is the class that was asked for: not clever, but all the family needs to say."""

import torch
from torch import nn

from vistok.models.interface import TokenSpec
from vistok.samplers.run import Scores


class Stripes(nn.Module):
    family, conditional_on, classes, text_width = "stripes", "class", 512, 0
    width, prefix = 1, 1

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def tokens(self):
        return TokenSpec("codes", 512, 256)

    def null_condition(self, batch):
        return torch.zeros(batch, dtype=torch.int64)

    def head(self, hidden):
        return 50 * self.scale * nn.functional.one_hot(hidden, 512).float()

    def image_tokens(self, drawn):
        return drawn.unflatten(1, (16, 16))


class StripesFamily:
    name, interface, plain, options = "stripes", "autoregressive", "ar", frozenset()

    def load(self, request):
        from vistok.tokenizers.load import load_tokenizer

        return Stripes(), load_tokenizer(str(request.tokenizer_source)).tokenizer


class StripesTarget:
    """Conditions decide alone, so there is nothing to cache."""

    def __init__(self, model, condition, params, nodes):
        self.model, self.condition, self.batch, self.length = model, condition, len(condition), 256

    def prefill(self):
        return Scores(self.model.head(self.condition.values[:, None]))

    def forward(self, tree, decided):
        return Scores(self.model.head(self.condition.values[:, None].expand(-1, tree.nodes)))

    def commit(self, verdict, least, rows):
        pass


FAMILY = StripesFamily()
'''

SAMPLER = '''
"""A drafter that knows one word, and the sampler that it makes."""

from dataclasses import dataclass

import torch

from vistok.samplers.drafters.plain import NoDraft
from vistok.samplers.interface import AutoregressiveSampler
from vistok.samplers.tree import TokenTree, TreeShape
from vistok.samplers.verifiers.candidates import (SampleMatch)


class Stubborn(NoDraft):
    """Proposes the same code, so many times."""

    def __init__(self, code, times):
        self.code, self.nodes = code, times + 1

    def start(self, run, prefill):
        self.shape = TreeShape.chain_of(self.nodes, run.tokens.device)

    def propose(self, run):
        drafts = torch.full((len(run.tokens), self.nodes - 1), self.code)
        return TokenTree(torch.cat([run.root, drafts], 1), self.shape)


@dataclass(frozen=True)
class StubbornSampler(AutoregressiveSampler):
    """Drafts one code all the time."""

    code: int = 0
    times: int = 3

    def parts(self, model, params, batch):
        return Stubborn(self.code, self.times), SampleMatch()
'''


def test_a_family_of_another_package_paints_with_the_samplers_of_this_one(install, tmp_path):
    run = install(FAMILY, "vistok.generators", "stripes = toy:FAMILY")
    points = tmp_path / "site" / "toy-1.0.dist-info" / "entry_points.txt"
    points.write_text(points.read_text() + "[vistok.targets]\nstripes = toy:StripesTarget\n")
    folder = tmp_path / "stripes"
    folder.mkdir()
    card = {"name": "stripes", "task": "class-to-image", "family": "stripes", "parameters": 1, "files": {}}
    card |= {"licence": "none", "parts": {"tokenizer": "vq-mini"}, "guidance": 1.0}
    (folder / "card.json").write_text(json.dumps(card))
    pictures = []
    for sampler in ("ar", "sjd:window=8", "recycling"):
        out = tmp_path / f"{len(pictures)}.png"
        done = run("sample", "--checkpoint", folder, "--class", "7", "--sampler", sampler, "--out", out, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["mean_accepted_length"] > (1 if sampler != "ar" else 0)
        pictures.append(Image.open(out).tobytes())
    assert pictures[0] == pictures[1] == pictures[2]
    refused = run("sample", "--checkpoint", folder, "--class", "7", "--tokens", "5", "--out", tmp_path / "x.png")
    assert refused.returncode == 2 and "has no --tokens" in refused.stderr


def test_a_drafter_of_another_package_is_a_sampler_with_options(install, tmp_path):
    run = install(SAMPLER, "vistok.samplers", "stubborn = toy:StubbornSampler")
    pictures = []
    for number, sampler in enumerate(("ar", "stubborn:code=5:times=2")):
        out = tmp_path / f"{number}.png"
        arguments = ("sample", "--prompt", "a red circle", "--sampler", sampler, "--seed", "1", "--out", out)
        done = run(*arguments)
        assert done.returncode == 0, done.stderr
        pictures.append(Image.open(out).tobytes())
    assert pictures[0] == pictures[1]  # lossless, and with the draws of plain decoding
    assert "stubborn:code=0:times=3" in run("samplers").stdout
    refused = run("sample", "--prompt", "a red circle", "--sampler", "stubborn:tmies=2", "--out", out)
    assert refused.returncode == 2 and "did you mean times" in refused.stderr
