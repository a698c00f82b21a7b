"""Training tasks of text drafters: what they learn from, and that what they write drafts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from tests.train.tiny import pure_batch, texts, tiny
from vistok.cli.main import app
from vistok.errors import VistokError
from vistok.models.heads.clover import Clover
from vistok.models.heads.hidden_transfer import HiddenTransfer
from vistok.models.heads.judge import JudgeHead
from vistok.models.heads.medusa import Medusa
from vistok.models.heads.prompt_tokens import PromptTokens
from vistok.samplers import (
    Chain,
    CloverHead,
    DraftModel,
    ExtraRowDrafter,
    Judge,
    KeepAll,
    LexicalUnits,
    MedusaHeads,
    SortedDraft,
)
from vistok.samplers.speculation import generate
from vistok.samplers.text_drafters import TRAINED, trained_kind
from vistok.train.tasks import build_task, text
from vistok.train.tasks.extra_rows import rows_forward
from vistok.train.tasks.judge import syntax
from vistok.zoo.transformers import load_causal_lm

OPTIONS = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def corpus(monkeypatch):
    monkeypatch.setattr(text, "documents", texts)


def trained(case: str, folder):
    """A task after one step, whose weights are in a folder."""
    task = build_task(tiny(case))
    batch = pure_batch(task)
    before = {name: value.clone() for name, value in task.model.named_parameters()}
    loss, _ = task.model.train()(**batch)
    loss.backward()
    moved = [name for name, value in task.model.named_parameters() if value.grad is not None]
    assert moved and all(torch.isfinite(task.model.get_parameter(name).grad).all() for name in moved)
    assert all(torch.equal(value, before[name]) for name, value in task.model.named_parameters())
    task.export(folder, {"held_out_loss": float(loss.detach())}, 1)
    assert json.loads((folder / "card.json").read_text())["metrics"]
    return task, moved


@pytest.mark.parametrize(("case", "loader"), [("text-mini-ppd", PromptTokens), ("text-mini-transfer", HiddenTransfer)])
def test_extra_rows_learn_alone_and_draft(tmp_path, case, loader):
    task, moved = trained(case, tmp_path)
    assert all(name.startswith("network.") for name in moved)
    found = loader.from_pretrained(str(tmp_path))
    share = sum(p.numel() for p in found.parameters()) / sum(p.numel() for p in task.model.lm.parameters())
    assert share <= 0.001 or loader is HiddenTransfer
    ids = task.batch(0, slice(0, 1))["input_ids"][:, :20]
    out = generate(task.model.lm, ids, ExtraRowDrafter(found), **OPTIONS)
    assert torch.equal(out.sequences, task.model.lm.generate(ids, **OPTIONS))


def test_medusa_heads_learn_alone_and_draft(tmp_path):
    task, moved = trained("text-mini-medusa", tmp_path)
    assert moved and all(name.startswith("network.") for name in moved)
    found, ids = Medusa.from_pretrained(str(tmp_path)), task.batch(0, slice(0, 1))["input_ids"][:, :20]
    out = generate(task.model.lm, ids, MedusaHeads(found), **OPTIONS)
    assert torch.equal(out.sequences, task.model.lm.generate(ids, **OPTIONS))


def test_rows_and_heads_learn_from_the_same_passages():
    """So that they compare as trained on as many tokens."""
    rows, heads = (build_task(tiny(case)) for case in ("text-mini-ppd", "text-mini-medusa"))
    mine, theirs = (task.batch(1, slice(0, 2)) for task in (rows, heads))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_a_row_learns_is_what_it_says_in_decoding(tmp_path):
    """A row at the end of a text in training, and behind the root of a tree in decoding."""
    task = build_task(tiny("text-mini-ppd"))
    ids = task.batch(0, slice(0, 1))["input_ids"].clone()
    with torch.no_grad():
        # The text's last token is the first that decoding adds, so that the root of the first tree is that token.
        ids[:, -1] = task.model.lm(ids[:, :-1]).logits[:, -1].argmax(-1)
        _, found = rows_forward(task.model.lm, task.model.network, ids, torch.tensor([[ids.shape[1] - 1]]))

    class Recording(ExtraRowDrafter):
        def observe(self, run, tree, scores, verdict):
            super().observe(run, tree, scores, verdict)
            self.first = getattr(self, "first", scores.extra)

    drafter = Recording(task.model.network.requires_grad_(False))
    generate(task.model.lm, ids[:, :-1], drafter, **OPTIONS)
    assert torch.allclose(drafter.first[0, :3], found[0, 0], atol=1e-3)


def test_lexical_units_are_taught_with_a_token_of_their_own(tmp_path):
    trained("text-mini-lud", tmp_path)
    model, tokenizer = load_causal_lm(str(tmp_path))
    token = tokenizer.convert_tokens_to_ids("<|placeholder|>")
    assert token == len(tokenizer) - 1 == model.config.vocab_size - 1
    ids = tokenizer("a red circle", return_tensors="pt").input_ids
    assert generate(model, ids, LexicalUnits(token), KeepAll(), **OPTIONS).sequences.shape[1] == ids.shape[1] + 12


def test_a_judge_reads_what_its_target_gives(tmp_path):
    task, _ = trained("text-mini-judge", tmp_path)
    head = JudgeHead.from_pretrained(str(tmp_path))
    ids = task.tokenizer("def read(self):\n", return_tensors="pt").input_ids
    out = generate(task.target, ids, DraftModel(task.draft, Chain(3)), Judge(head), **OPTIONS)
    assert out.stats.lengths.tolist() == [12]


def test_syntax_is_blind_to_names_constants_comments_and_cut_lines():
    code = "def f(a):\n    return a + 1\n\nx = f(2)\n"
    assert syntax(code) == syntax("def g(b):  # why\n    return b + 7\n\ny = g(3)\nfor i in") != ""
    assert syntax(code) != syntax(code.replace("+", "-"))


def test_clover_heads_learn_alone_and_draft(tmp_path):
    task, moved = trained("text-mini-clover", tmp_path)
    assert all(name.startswith("heads.") and "embed_tokens" not in name for name in moved)
    heads = Clover.from_pretrained(str(tmp_path))
    ids = task.batch(0, slice(0, 1))["input_ids"][:, :20]
    out = generate(task.model.lm, ids, CloverHead(heads), **OPTIONS)
    assert torch.equal(out.sequences, task.model.lm.generate(ids, **OPTIONS))


def test_every_exit_learns_and_drafts(tmp_path):
    task, _ = trained("text-mini-sorted-draft", tmp_path)
    draft, _ = load_causal_lm(str(tmp_path))
    ids = task.batch(0, slice(0, 1))["input_ids"][:, :20]
    out = generate(task.model.teacher, ids, SortedDraft(draft, (1, 2, 3), threshold=0.0), **OPTIONS)
    assert torch.equal(out.sequences, task.model.teacher.generate(ids, **OPTIONS))
    recipe = tiny("text-mini-sorted-draft")
    with pytest.raises(VistokError, match="rise to 3"):
        build_task(replace(recipe, init=recipe.init | {"exits": [1, 2]}))


def written(*words: str) -> dict:
    found = CliRunner().invoke(app, ["write", "def read(self):\n", "--new-tokens", "8", *words, "--json"])
    assert found.exit_code == 0, found.exception
    return json.loads(found.stdout)


@pytest.mark.parametrize("name", ["text-mini-clover", "text-mini-medusa", "text-mini-transfer", "text-mini-ppd"])
def test_trained_weights_draft_by_the_folder_they_are_in(tmp_path, name):
    trained(name, tmp_path)
    kind = trained_kind(str(tmp_path))
    assert TRAINED[kind].family == json.loads((tmp_path / "card.json").read_text())["family"]
    assert written("--drafter", kind, "--draft", str(tmp_path))["text"] == written("--drafter", "none")["text"]
    words = f"bench text --prompts 1 --new-tokens 4 --head {tmp_path} --methods {tmp_path}".split()
    found = CliRunner().invoke(app, [*words, "--json"])
    assert found.exit_code == 0, found.exception
    row = next(row for row in json.loads(found.stdout)["rows"] if row["kind"] == "all" and kind in row["name"])
    assert row["lossless"] and row["same"] == 1
    other = next(each for each in TRAINED if each not in (kind, "eagle"))
    error = CliRunner().invoke(app, ["write", "a", "--drafter", other, "--draft", str(tmp_path)]).exception
    assert isinstance(error, VistokError) and str(tmp_path) in str(error)


def test_a_sorted_draft_and_lexical_units_go_by_what_their_models_say(tmp_path):
    trained("text-mini-sorted-draft", tmp_path / "s2d")
    plain = written("--drafter", "none")["text"]
    assert written("--drafter", "s2d", "--draft", str(tmp_path / "s2d"))["text"] == plain
    trained("text-mini-lud", tmp_path / "lud")
    taught = ["--model", str(tmp_path / "lud"), "--drafter"]
    assert written(*taught, "lexical-units")["text"] == written(*taught, "none")["text"]
    for words in (["s2d"], ["lexical-units"]):
        error = CliRunner().invoke(app, ["write", "a", "--drafter", *words]).exception
        assert isinstance(error, VistokError) and words[0] in str(error)
