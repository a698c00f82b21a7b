"""The generator's training data, and the losses that weigh what a code shows and what is bound to what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vistok.data.scenes import COLOURS, sample_scenes, statements
from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen
from vistok.train.recipe import Recipe
from vistok.train.sources import ScenesSource
from vistok.train.tasks.llamagen import captioned_states, take_blocks
from vistok.train.tasks.scenes.contrast import contrast_loss, decisive, untrue
from vistok.train.tasks.scenes.llamagen import SupervisedLlamaGenTask, choose_binding
from vistok.train.tasks.scenes.plans import plan
from vistok.train.tasks.scenes.reader import code_colours, colour_loss

RECIPE = Recipe(
    name="llamagen-test",
    task="llamagen",
    steps=2,
    batch_size=8,
    init={"vq": "vq-mini", "gpt": "llamagen-mini"},
    data={"size": 64, "seed": 9, "pictures": 32, "eval_pictures": 4, "supervision": {"contrast": 0.1}, "binding": 0.75},
)


@pytest.fixture(scope="module")
def task():
    return SupervisedLlamaGenTask(RECIPE)


@pytest.fixture(scope="module")
def batch(task):
    return task.batch(0, slice(0, 8))


def test_a_generator_of_other_codes_lends_its_blocks():
    lent = LlamaGen.from_pretrained("llamagen-mini")
    gpt = LlamaGen(replace(lent.config, block_size=8, layout="sequence", vocab_size=16))
    take_blocks(gpt, lent)
    theirs = lent.state_dict()
    kept = {key for key, value in gpt.state_dict().items() if torch.equal(value, theirs[key])}
    assert set(theirs) - kept == {"tok_embeddings.weight", "output.weight"}
    with pytest.raises(VistokError, match=r"shape.*layers"):
        take_blocks(LlamaGen(replace(lent.config, multiple_of=192)), lent)


def binding(said):
    return sum(untrue(s) is not None for s in said)


def test_captions_that_bind_are_chosen_first_and_then_the_rest():
    said = statements(sample_scenes(64, seed=1))
    bound = binding(said)
    assert 12 < bound < 40
    assert sorted(choose_binding(said, 5)) == list(range(64))
    assert binding([said[i] for i in choose_binding(said, 5)[: 64 - bound + 5]]) == 5
    assert binding([said[i] for i in choose_binding(said, 5)[-(bound - 5) :]]) == bound - 5


def test_batches_bind_more_and_each_pass_words_them_anew(task, monkeypatch):
    heard = []
    monkeypatch.setattr(task, "told", lambda scenes, said, *_: heard.append(said) or {})
    seen = [task.batch(step, slice(0, 8))["tokens"] for step in range(4)]
    assert sum(map(binding, heard[:2])) >= 10  # of 16; by themselves it would be six
    assert not torch.equal(torch.cat(seen[:2]), torch.cat(seen[2:]))  # the wording tells, or does not, where things are
    assert all((codes >= 0).all() for codes in seen)
    halves = [task.batch(1, rows)["tokens"] for rows in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat(halves), seen[1])


def test_the_first_of_a_batch_are_contrasted_with_untrue_captions(task, batch):
    parts = [task.batch(0, rows) for rows in (slice(0, 4), slice(4, 8))]
    assert [len(part["contrasted"]) for part in parts] == [4, 2]  # six of eight
    assert torch.equal(torch.cat([part["other_ids"] for part in parts]), batch["other_ids"])
    assert batch["contrasted"].any()
    same = (batch["other_ids"] == batch["input_ids"][:6]).all(1)
    assert torch.equal(same, ~batch["contrasted"])


def test_the_objective_contrasts_the_likelihoods_of_the_first_object(task, batch):
    model = task.model.eval()
    with torch.no_grad():
        loss, metrics = model(**batch)
        tokens, likely = batch["tokens"][:6], []
        for ids, mask in (("input_ids", "attention_mask"), ("other_ids", "other_mask")):
            states = captioned_states(model.gpt, model.text_encoder, batch[ids][:6], batch[mask][:6], tokens)
            logits = model.gpt.head(model.gpt.norm(states[-1])).transpose(1, 2)
            shown = decisive(batch["begins"][:6], 256, 16)
            likely.append(-(F.cross_entropy(logits, tokens, reduction="none") * shown).sum(1))
    expected = contrast_loss(*likely, batch["contrasted"])
    torch.testing.assert_close(metrics["contrast"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(loss, metrics["codes"] + 0.1 * expected, rtol=1e-4, atol=1e-4)


def test_dropped_captions_are_not_contrasted(task, batch, monkeypatch):
    model, config = task.model.train(), task.model.gpt.config
    monkeypatch.setattr(model.gpt, "config", replace(config, class_dropout_prob=1.0))
    assert model(**batch)[1]["contrast"] == 0
    model.gpt.config = replace(config, class_dropout_prob=0.0)
    assert model(**batch)[1]["contrast"] > 0


def test_all_scenes_that_a_batch_is_chosen_from_must_be_there():
    with pytest.raises(VistokError, match="multiple of the 16 drawn"):
        SupervisedLlamaGenTask(replace(RECIPE, data=RECIPE.data | {"pictures": 24}))


def test_codes_show_what_their_cells_show():
    cells = torch.tensor([[0, 8, 9, 48], [48, 48, 1, 40]], dtype=torch.int16)
    tokens = torch.tensor([[2, 2, 1, 0], [0, 2, 1, 2]])
    assert code_colours(tokens, cells, 4).tolist()[:3] == [len(COLOURS), 1, 0]


def test_the_task_counts_colours_of_its_own_codes(task):
    scenes = sample_scenes(32, seed=77)
    cells = plan(scenes, 16).cells.long()
    shown = torch.where(cells < 48, cells % 8, 8)
    right = task.model.colours[task.extract(ScenesSource(64, 77), torch.arange(32))] == shown
    assert right.float().mean() > 0.9
    assert right[shown < 8].float().mean() > 0.7


def test_colour_loss_is_the_cross_entropy_of_sums():
    torch.manual_seed(0)
    logits, tokens, colours = torch.randn(2, 5, 6), torch.randint(6, (2, 5)), torch.tensor([0, 0, 1, 2, 2, 2])
    sums = logits.softmax(-1) @ F.one_hot(colours).float()
    expected = F.nll_loss(sums.log().flatten(0, 1), colours[tokens].flatten())
    torch.testing.assert_close(colour_loss(logits, tokens, colours), expected)
    texture = torch.randn(2, 5, 3).softmax(-1).log()
    within = torch.stack([logits[..., 3:].logsumexp(-1)] * 3, -1) + texture
    moved = torch.cat([logits[..., :3], within], -1)
    torch.testing.assert_close(colour_loss(moved, tokens, colours), expected)  # texture does not count
