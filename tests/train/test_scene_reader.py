"""The plan of a scene: what is in each cell, and what is still to come."""

from __future__ import annotations

import torch

from vistok.data.scenes import NUM_CLASSES, sample_scenes
from vistok.train.tasks.scene_reader import SceneReader, plan


def test_plans_hold_every_object_once():
    scenes = sample_scenes(64, seed=5)
    cells, kinds, begins = plan(scenes, 16)
    assert ((begins >= 0) == scenes.present).all()
    for row in range(64):
        seen = set(cells[row].tolist()) - {NUM_CLASSES}
        assert seen == set(kinds[row][scenes.present[row]].tolist())
        first = int((cells[row] < NUM_CLASSES).nonzero()[0])
        assert first == int(begins[row][scenes.present[row]].min())


def test_the_loss_is_small_only_for_the_right_counts():
    scenes = sample_scenes(1, seed=8)
    cells, kinds, begins = plan(scenes, 16)
    reader = SceneReader(4)
    states = torch.zeros(1, 256, 4)
    torch.nn.init.zeros_(reader.left.weight)
    coming = sum((begins[0, o] >= 0) * torch.eye(NUM_CLASSES)[kinds[0, o].long()] for o in range(4))
    right = torch.where(coming[:, None] > torch.arange(4), 20.0, -20.0)  # before anything is painted
    reader.left.bias.data = right.flatten()
    early = begins[0][begins[0] >= 0].min()
    one = reader(states[:, : early + 1], cells[:, : early + 1], kinds, begins)[1]
    assert one < 1e-6
    reader.left.bias.data = -right.flatten()
    assert reader(states, cells, kinds, begins)[1] > 100
