"""What the embedded feature network is trained on: targets that name what a cell shows, and a loss that falls."""

from __future__ import annotations

import torch

from vistok.data.scenes import COLOURS, SHAPES, sample_scenes
from vistok.data.scenes.render import render_masks
from vistok.models.vision.scenes import SceneFeatures
from vistok.train.tasks.scenes.features_objective import SceneFeaturesObjective, scene_targets, training_batch


def test_cells_name_the_object_that_covers_them():
    scenes = sample_scenes(64, seed=3)
    targets = scene_targets(scenes)
    covered = torch.nn.functional.adaptive_max_pool2d(render_masks(scenes, 128)[:, :, 4::16, 4::16], 8) > 0.5
    assert torch.equal(targets["shape"] == len(SHAPES), targets["colour"] == len(COLOURS))
    for b, o, y, x in covered.nonzero().tolist():
        if targets["shape"][b, y, x] < len(SHAPES):
            assert targets["shape"][b, y, x] == scenes.shape[b, o] and targets["colour"][b, y, x] == scenes.colour[b, o]
    cells = (targets["shape"] < len(SHAPES)).flatten(1).sum(1)
    assert cells[scenes.present.sum(1) == 4].float().mean() > 3 * cells[scenes.present.sum(1) == 1].float().mean()
    assert torch.equal(targets["kinds"].sum(1) >= 1, torch.ones(64, dtype=torch.bool))


def test_the_network_learns_from_its_batches():
    torch.manual_seed(0)
    objective = SceneFeaturesObjective(SceneFeatures())
    batch = training_batch(16, seed=0, start=0)
    assert batch["images"].shape == (16, 3, 64, 64) and batch["images"].abs().max() <= 1
    assert torch.equal(training_batch(16, 0, 0)["images"], batch["images"])
    optimizer = torch.optim.AdamW(objective.parameters(), 2e-3)
    losses = []
    for _ in range(10):
        loss, metrics = objective(**batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and all(value.isfinite() for value in metrics.values())
