"""The embedded feature network: what it is trained on, and that its distance ranks damage by its degree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from vistok.data.scenes import COLOURS, render, sample_scenes
from vistok.errors import VistokError
from vistok.eval.sets.extractors import load_extractor
from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.models.vision.scenes import DIM, SceneFeatures, load_scene_features
from vistok.train.tasks.scenes.features_objective import corrupt


def test_the_network_is_small():
    assert sum(parameter.numel() for parameter in SceneFeatures().parameters()) <= 500_000


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
