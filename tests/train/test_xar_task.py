"""Training xAR: what silhouettes add to the published loss."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import vistok
from tests.train.tiny import figures, tiny
from vistok.data.scenes import NUM_CLASSES
from vistok.errors import VistokError
from vistok.models.patches import patchify
from vistok.train.recipe import Recipe
from vistok.train.sources import Draw
from vistok.train.tasks import build_task


def recipe(**data: object) -> Recipe:
    found = tiny("xar-mini")
    kept = {key: value for key, value in found.data.items() if key != "supervision"}
    return replace(found, data=kept | data)


def test_supervision_leaves_the_published_loss() -> None:
    losses = []
    for told in ({}, {"supervision": 0.5}):
        task = build_task(recipe(**told))
        torch.manual_seed(3)
        batch = task.batch(0, slice(0, 4))
        loss, parts = task.model(**batch)
        losses.append(float(parts["velocity"]))
        expected = parts["velocity"] + sum(0.5 * parts[name] for name in parts if name == "silhouette")
        assert torch.allclose(loss, expected)
    assert losses[0] == pytest.approx(losses[1])


def test_silhouettes_follow_their_pictures_upright_and_mirrored() -> None:
    task = build_task(recipe(supervision=0.5))
    draw = Draw(torch.arange(6), torch.zeros(6, dtype=torch.long))
    upright, mirrored = (task.told(draw, torch.full((6,), side))["silhouettes"] for side in (0, 1))
    moments = task.moments[draw.index]
    for side, told in enumerate((upright, mirrored)):
        covered = told.float().mean(2) > 128  # [B, L]
        tokens = patchify(moments[:, side, 0].float(), task.xar.config.patch_size)
        assert tokens.shape[:2] == told.shape[:2]
        inside = torch.stack([each[where].mean(0) for each, where in zip(tokens, covered, strict=True)])
        outside = torch.stack([each[~where].mean(0) for each, where in zip(tokens, covered, strict=True)])
        assert ((inside - outside).norm(dim=1) > 1).all()
    grid = task.xar.config.grid
    columns = (upright.float().mean(2), mirrored.float().mean(2).unflatten(1, (grid, grid)).flip(2).flatten(1))
    assert torch.allclose(*columns)


def test_kinds_follow_their_pictures_upright_and_mirrored() -> None:
    task = build_task(recipe(supervision=0.5, kinds=0.5))
    draw = Draw(torch.arange(6), torch.zeros(6, dtype=torch.long))
    upright, mirrored = (task.told(draw, torch.full((6,), side)) for side in (0, 1))
    for told in (upright, mirrored):
        covered, inside = told["silhouettes"].float().mean(2) > 128, told["cells"] < NUM_CLASSES
        assert bool((inside | ~covered).all()) and bool((~inside).any())
        own = task.source.labels(draw.index)[:, None].expand_as(inside)
        assert torch.equal(told["cells"][inside].long(), own[inside])
    grid = task.xar.config.grid
    assert torch.equal(upright["cells"], mirrored["cells"].unflatten(1, (grid, grid)).flip(2).flatten(1))
    loss, parts = task.model(**task.batch(0, slice(0, 4)))
    weighed = 0.5 * parts["silhouette"] + 0.5 * parts["kind"]
    assert torch.allclose(loss, parts["velocity"] + weighed)


def test_from_captions_to_a_folder_that_paints_prompts(tmp_path) -> None:
    found = recipe(supervision=0.5, kinds=0.5)
    found = replace(found, steps=2, init={"kl": "kl-mini", "text_encoder": "llamagen-mini"})
    assert all(loss > 0 for loss in figures(found, tmp_path)["loss"])
    task = build_task(found)
    batch = task.batch(0, slice(0, 4))
    assert batch["values"].shape == (4, 32, 128) and task.moments.rows.shape[1] == 1  # upright alone
    assert len(task.source.scenes(torch.arange(64)).present.sum(1).unique()) > 1  # not of one object alone
    pipe = vistok.pipeline(str(tmp_path / "export"))
    assert pipe.model.card.parts == {"tokenizer": "kl-mini", "text_encoder": "llamagen-mini"}
    assert pipe("a red circle", sampler="xar:num_steps=3").images[0].size == (64, 64)
    with pytest.raises(VistokError, match="prompts"):
        pipe(3)


def test_supervision_needs_scenes() -> None:
    with pytest.raises(VistokError, match="supervision"):
        build_task(recipe(supervision=0.5, source="folder", path="."))
