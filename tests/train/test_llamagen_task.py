"""The generator's training data, and the loss that weighs what a code shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vistok.data.scenes import COLOURS, sample_scenes, statements
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen
from vistok.train.recipe import Recipe
from vistok.train.tasks.llamagen import LlamaGenTask, choose_relations, take_blocks
from vistok.train.tasks.scene_reader import code_colours, code_losses, plan

RECIPE = Recipe(
    name="llamagen-test",
    task="llamagen",
    steps=2,
    batch_size=8,
    init={"vq": "vq-mini", "gpt": "llamagen-mini"},
    data={"size": 64, "seed": 9, "scenes": 64, "eval_scenes": 4, "supervision": {"colour": 4.0}, "relations": 0.5},
)


def test_a_generator_of_other_codes_lends_its_blocks():
    lent = LlamaGen.from_pretrained("llamagen-mini")
    gpt = LlamaGen(replace(lent.config, block_size=8, layout="sequence", vocab_size=16))
    take_blocks(gpt, lent)
    theirs = lent.state_dict()
    kept = {key for key, value in gpt.state_dict().items() if torch.equal(value, theirs[key])}
    assert set(theirs) - kept == {"tok_embeddings.weight", "output.weight"}
    with pytest.raises(VistokError, match="not a generator of this recipe's shape: it has other shapes: layers"):
        take_blocks(LlamaGen(replace(lent.config, multiple_of=192)), lent)


def relations(said):
    return sum(s.where is not None for s in said)


def test_relations_are_chosen_first_and_then_the_rest():
    said = statements(sample_scenes(64, seed=1))
    told = relations(said)
    assert 6 < told < 40
    assert sorted(choose_relations(said, 5)) == list(range(64))
    assert relations([said[i] for i in choose_relations(said, 5)[:24]]) == 5
    assert relations([said[i] for i in choose_relations(said, 5)[-(told - 5) :]]) == told - 5


def test_batches_tell_more_relations_and_each_pass_words_them_anew(monkeypatch):
    task = LlamaGenTask(RECIPE)
    heard = []
    monkeypatch.setattr(task, "_told", lambda scenes, variant: heard.append(statements(scenes, variant)) or {})
    seen = [task.batch(step, slice(0, 8))["tokens"] for step in range(8)]
    assert sum(map(relations, heard[:4])) >= 10  # of 32; at a fifth of them it would be six
    assert not torch.equal(torch.cat(seen[:4]), torch.cat(seen[4:]))  # the wording tells, or does not, where things are
    assert all((codes >= 0).all() for codes in seen)
    halves = [task.batch(1, rows)["tokens"] for rows in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat(halves), seen[1])


def test_all_scenes_that_a_batch_is_chosen_from_must_be_there():
    with pytest.raises(VistokError, match="multiple of the 16 drawn"):
        LlamaGenTask(replace(RECIPE, data=RECIPE.data | {"scenes": 24}))


def test_codes_show_what_their_cells_show():
    cells = torch.tensor([[0, 8, 9, 48], [48, 48, 1, 40]], dtype=torch.int16)
    tokens = torch.tensor([[2, 2, 1, 0], [0, 2, 1, 2]])
    assert code_colours(tokens, cells, 4).tolist()[:3] == [len(COLOURS), 1, 0]


def test_the_task_counts_colours_of_its_own_codes():
    task = LlamaGenTask(RECIPE)
    scenes = sample_scenes(32, seed=77)
    cells = plan(scenes, 16).cells.long()
    shown = torch.where(cells < 48, cells % 8, 8)
    right = task.model.colours[task._extract(77, 0, 32)] == shown
    assert right.float().mean() > 0.9
    assert right[shown < 8].float().mean() > 0.7


def test_the_losses_of_colour_and_outline_are_the_two_choices_of_a_code():
    torch.manual_seed(0)
    background = len(COLOURS)
    logits, tokens, colours = torch.randn(2, 5, 6), torch.randint(6, (2, 5)), torch.tensor([0, 0, 1] + [background] * 3)
    sums = logits.softmax(-1) @ F.one_hot(colours).float()
    expected = F.nll_loss(sums.log().flatten(0, 1), colours[tokens].flatten())
    found = code_losses(logits, tokens, colours)
    torch.testing.assert_close(found["colour"], expected)
    whole = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
    inside = colours[tokens] != background
    assert 0 < inside.sum() < inside.numel()
    both = F.nll_loss(sums.log().flatten(0, 1), colours[tokens].flatten(), reduction="none").view_as(tokens)
    torch.testing.assert_close(found["outline"], (whole - both)[inside].sum() / tokens.numel())
    texture = torch.randn(2, 5, 3).softmax(-1).log()
    within = torch.stack([logits[..., 3:].logsumexp(-1)] * 3, -1) + texture
    moved = torch.cat([logits[..., :3], within], -1)
    torch.testing.assert_close(code_losses(moved, tokens, colours), found)  # the background's texture does not count
