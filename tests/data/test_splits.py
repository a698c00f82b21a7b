"""Splits of the embedded world: no world that is measured on is trained on, and no two measurements share one."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch
import yaml

from vistok.data.scenes import sample_scenes
from vistok.data.scenes.splits import HELD_OUT_SPLITS, TRAINING_SEEDS, check_training_seed, single_object_scenes
from vistok.errors import VistokError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def test_no_two_splits_share_a_seed():
    assert len(set(HELD_OUT_SPLITS.values())) == len(HELD_OUT_SPLITS)
    assert not any(seed in TRAINING_SEEDS for seed in HELD_OUT_SPLITS.values())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_on_a_training_world(recipe):
    assert yaml.safe_load(recipe.read_text())["data"]["seed"] in TRAINING_SEEDS


@pytest.mark.parametrize("seed", [*HELD_OUT_SPLITS.values(), -1, "3", 1.5, True, None])
def test_other_worlds_are_refused_by_their_seed(seed):
    with pytest.raises(VistokError, match=f"data.seed is {seed!r}"):
        check_training_seed(seed)


def test_worlds_of_two_splits_have_no_scene_in_common():
    worlds = [sample_scenes(256, seed).centre[:, 0] for seed in (*HELD_OUT_SPLITS.values(), 31)]
    for one, other in combinations(worlds, 2):
        assert not (torch.cdist(one, other) == 0).any()


def test_single_object_scenes_are_those_of_their_chunk():
    scenes = single_object_scenes(3, 1)
    assert (scenes.present.sum(1) == 1).all()
    assert 80 < len(scenes) < 160
    assert (scenes.index >= 512).all() and (scenes.index < 1024).all()
