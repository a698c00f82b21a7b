"""The embedded feature network: what it is trained on, and that its distance ranks damage by its degree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vistok.data.scenes import COLOURS, SHAPES, render, sample_scenes
from vistok.data.scenes.render import render_masks
from vistok.errors import VistokError
from vistok.eval.sets.extractors import load_extractor
from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.models.vision.scenes import (
    DIM,
    SceneFeatures,
    SceneFeaturesObjective,
    corrupt,
    load_scene_features,
    scene_targets,
    training_batch,
)


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


def test_the_network_is_small_and_learns_from_its_batches():
    torch.manual_seed(0)
    objective = SceneFeaturesObjective(SceneFeatures())
    assert sum(parameter.numel() for parameter in objective.network.parameters()) <= 500_000
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


def statistics(images):
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    return FeatureStatistics.of(load_extractor("scenes-features")(list(pixels))["features"])


def without_last_object(scenes, share: float):
    """The scenes, the first ``share`` of them without their last object."""
    rows = torch.arange(round(share * len(scenes)))
    group = scenes.group.clone()
    group[rows, scenes.present.sum(1)[rows] - 1] = -1
    return replace(scenes, group=group)


def all_red(scenes, share: float):
    """The scenes, the first ``share`` of them with red objects only."""
    chosen = torch.arange(len(scenes))[:, None] < share * len(scenes)
    return replace(scenes, colour=scenes.colour.masked_fill(chosen, 0))


@pytest.mark.parametrize(
    ("damage", "degrees"),
    [
        (lambda s, x: corrupt(render(s), torch.tensor([[x, 0.0]]).repeat(len(s), 1), torch.Generator()), (0.5, 1, 2)),
        (lambda s, x: corrupt(render(s), torch.tensor([[0.0, x]]).repeat(len(s), 1), torch.Generator()), (0.05, 0.2)),
        (lambda s, x: render(without_last_object(s, x)), (0.2, 0.5, 1)),
        (lambda s, x: render(all_red(s, x)), (0.2, 0.5, 1)),
        (lambda s, x: render(s) * x, (0.9, 0.7, 0.4)),
    ],
    ids=["blur", "noise", "missing objects", "wrong colours", "contrast"],
)
def test_the_distance_ranks_damage_by_its_degree(damage, degrees):
    scenes = sample_scenes(96, seed=1_000_003)
    reference = statistics(render(scenes))
    distances = [frechet_distance(reference, statistics(damage(scenes, degree))) for degree in degrees]
    assert distances == sorted(distances) and distances[0] > 1e-3, distances


def test_features_see_what_and_where():
    network = load_scene_features()
    scenes = sample_scenes(8, seed=5)
    pictures = render(scenes)
    mirrored, recoloured = pictures.flip(3), render(replace(scenes, colour=(scenes.colour + 3) % len(COLOURS)))
    features, moved, painted = (network(x)["features"] for x in (pictures, mirrored, recoloured))
    assert features.shape == (8, DIM)
    again = network(pictures + 0.004)["features"]  # half a grey level
    for changed in (moved, painted):
        assert ((features - changed).norm(dim=1) > 5 * (features - again).norm(dim=1)).all()


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(VistokError, match=r"does not exist|no file"):
        load_scene_features(tmp_path / "absent.safetensors")
    from safetensors.torch import save_file

    save_file(SceneFeatures().state_dict(), tmp_path / "unfolded.safetensors")
    with pytest.raises(VistokError, match="scenes-features network"):
        load_scene_features(tmp_path / "unfolded.safetensors")
