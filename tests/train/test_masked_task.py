"""Training masked generators: from captions and from classes, which scenes a batch has, and what the export paints."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import vistok
from tests.train.tiny import figures, tiny
from vistok.errors import VistokError
from vistok.train.recipe import Recipe
from vistok.train.tasks import build_task
from vistok.train.tasks.masked import IGNORED, masked_loss
from vistok.train.tasks.scenes.masked import SceneTerm
from vistok.train.tasks.scenes.plans import SILHOUETTE, silhouettes
from vistok.train.tasks.scenes.reader import ColourTerm

KINDS = ("enat-mini", "maskgit-mini")


def of_captions(recipe: Recipe) -> Recipe:
    return replace(recipe, init={"tokenizer": "vq-mini", "text_encoder": "llamagen-mini"})


def as_published(recipe: Recipe) -> Recipe:
    data = {key: value for key, value in recipe.data.items() if key not in ("supervision", "silhouettes", "single")}
    return replace(recipe, data=data, init={"tokenizer": "vq-mini"})


@pytest.mark.parametrize("name", KINDS)
def test_from_captions_to_a_folder_that_paints_prompts(tmp_path, name) -> None:
    found = figures(of_captions(tiny(name, steps=2)), tmp_path)
    assert all(loss > 0 for loss in found["loss"])
    assert {"held_out_loss", "held_out_loss_without_condition"} <= found["held_out"].keys()
    pipe = vistok.pipeline(str(tmp_path / "export"))
    assert pipe.conditional_on == "text" and not (tmp_path / "export" / "text_encoder").exists()
    assert pipe.model.card.parts == {"tokenizer": "vq-mini", "text_encoder": "llamagen-mini"}
    assert pipe("a red circle", sampler="masked:steps=2").images[0].size == (64, 64)
    with pytest.raises(VistokError, match="prompts"):
        pipe(3)


@pytest.mark.parametrize("name", KINDS)
def test_from_classes_as_published(tmp_path, name) -> None:
    recipe = as_published(tiny(name, steps=1))
    task = build_task(recipe)
    assert task.model.network.conditional_on == "class" and task.model.term is None
    batch = task.batch(0, slice(0, 4))
    assert batch["values"].dtype == torch.int64 and int(batch["values"].max()) <= 48
    assert task.codes.rows.shape[1] == 2  # upright and mirrored
    figures(recipe, tmp_path)
    assert vistok.pipeline(str(tmp_path / "export"))(3, sampler="masked:steps=2").images


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_batch_has_as_many_single_objects_as_asked_and_as_there_are(share) -> None:
    recipe = of_captions(tiny("maskgit-mini"))
    recipe = replace(recipe, data=recipe.data | {"single": share, "pictures": 64})
    task, mixed = build_task(recipe), False
    for step in range(8):
        counts = task.source.scenes(task.draw(step, slice(0, 4)).index).present.sum(1)
        there = task.source.scenes(task.source.draw(8 * step, 8).index).present.sum(1)
        assert int((counts == 1).sum()) >= min(4 * share, int((there == 1).sum()))
        mixed |= bool((counts > 1).any())
    assert mixed == (share < 1)


def test_rows_of_a_step_are_those_of_the_whole_step() -> None:
    task = build_task(tiny("enat-mini"))
    parts = []
    for rows in (slice(0, 4), slice(0, 2), slice(2, 4)):
        torch.manual_seed(5)
        parts.append(task.batch(3, rows))
    for name, whole in parts[0].items():
        assert torch.equal(whole, torch.cat([part[name] for part in parts[1:]]))


def test_smoothing_is_that_of_the_labels() -> None:
    logits, labels = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    labels[0, :3] = IGNORED
    shown = labels >= 0
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(logits[shown], labels[shown], label_smoothing=smoothing)
        assert torch.allclose(masked_loss(logits, labels, smoothing), expected)


@pytest.mark.parametrize("captioned", [False, True])
def test_silhouettes_are_those_of_the_pictures_that_the_codes_show(captioned) -> None:
    recipe = tiny("enat-mini")
    task = build_task(of_captions(recipe) if captioned else recipe)
    torch.manual_seed(2)
    batch, draw = task.batch(0, slice(0, 4)), task.draw(0, slice(0, 4))
    upright = silhouettes(task.source.scenes(draw.index), 16)
    mirror = upright.view(-1, 16, 16, SILHOUETTE, SILHOUETTE).flip(2, 4).reshape(upright.shape)
    mirrored = (batch["codes"] != task.codes[draw.index][:, 0]).any(1)
    assert bool(mirrored.any()) != captioned
    assert torch.equal(batch["silhouettes"], torch.where(mirrored[:, None, None], mirror, upright))


def test_a_silhouette_is_learned_from_the_features_of_its_own_code() -> None:
    torch.manual_seed(0)
    term = SceneTerm(ColourTerm(torch.zeros(7, dtype=torch.int64), 0.0), 8, 1.0)
    told = torch.randint(2, (3, SILHOUETTE**2)) * 255
    features, logits = torch.randn(3, 8, requires_grad=True), torch.randn(3, 7)
    losses = [term(features, logits, torch.arange(3), told.byte())]
    losses[0].backward()
    ahead = features.detach() - 2 * features.grad / features.grad.norm(dim=1, keepdim=True)
    losses += [term(x, logits, torch.arange(3), told.byte()) for x in (ahead, ahead.roll(1, 0))]
    assert losses[1] < losses[0] and losses[1] < losses[2]


def test_supervision_needs_scenes() -> None:
    recipe = tiny("enat-mini")
    with pytest.raises(VistokError, match="supervision"):
        build_task(replace(recipe, data=recipe.data | {"source": "folder", "path": "."}))
