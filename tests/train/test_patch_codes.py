"""The anchor of the embedded VQ tokenizer: points of patches, and codes that start as their k-means."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.train.test_trainer import VQ
from vistok.data.scenes import render, sample_scenes
from vistok.train.tasks.starts.patch_codes import PatchCodes, PatchComponents, spherical_kmeans
from vistok.train.tasks.vq import VQTask

ANCHORED = replace(VQ, data=VQ.data | {"anchor": 1.0})


@pytest.fixture(scope="module")
def scenes():
    return render(sample_scenes(32, seed=3), 64)


def test_a_point_tells_its_own_patch_alone(scenes):
    anchor = PatchCodes(scenes, patch=4, dim=16)
    points = anchor(scenes[:2])
    assert points.shape == (2, 16, 16, 16)
    assert torch.allclose(points.norm(dim=1), torch.ones(2, 16, 16), atol=1e-5)
    changed = scenes[:2].clone()
    changed[:, :, 8:12, 20:24] = 1.0
    moved = (anchor(changed) - points).norm(dim=1)
    assert (moved[:, 2, 5] > 0.1).all()
    moved[:, 2, 5] = 0
    assert not moved.any()


def test_components_explain_more_than_others_of_their_number(scenes):
    components = PatchComponents(scenes, patch=4, count=7)
    pixels = components._patches(scenes).flatten(0, 2) - components.mean

    def left(directions):
        return (pixels - pixels @ directions @ directions.T).square().mean()

    random = torch.linalg.qr(torch.randn(48, 7, generator=torch.Generator().manual_seed(0)))[0]
    assert left(components.directions) < 0.1 * left(random)
    assert torch.allclose(components(scenes).std((0, 2, 3)), components.deviations, rtol=1e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 6), st.integers(0, 1000))
def test_kmeans_finds_clusters_that_are_apart(count, seed):
    generator = torch.Generator().manual_seed(seed)
    true = torch.eye(8)[:count]
    noise = 0.02 * torch.randn(count, 40, 8, generator=generator)
    points = F.normalize(true[:, None] + noise, dim=-1).flatten(0, 1)
    centres = spherical_kmeans(points, 3 * count, generator)
    assert torch.allclose(centres.norm(dim=1), torch.ones(3 * count), atol=1e-5)
    assert (points @ centres.T).amax(1).min() > 0.95  # with a few centres to spare none is left out


def test_an_anchored_run_starts_from_patches_and_is_drawn_to_them(scenes):
    torch.manual_seed(0)
    task = VQTask(ANCHORED)
    config, anchor = task.tokenizer.config, task.model.anchor
    images = render(sample_scenes(8, VQ.data["seed"], 0), VQ.data["size"])
    points = anchor(images).movedim(1, -1).flatten(0, 2)
    assert (points @ task.tokenizer.quantize.codebook.T).amax(1).mean() > 0.97
    assert task.tokenizer.quantize.codebook.shape == (config.codebook_size, config.codebook_dim)
    batch = task.batch(0, slice(0, 4))
    loss, metrics = task.model(**batch)
    task.model.anchor_weight = 0.0
    torch.manual_seed(0)
    assert torch.isclose(loss - task.model(**batch)[0], metrics["anchor_loss"], atol=1e-4)


def test_going_on_keeps_the_codebook(tmp_path):
    first = VQTask(ANCHORED)
    first.tokenizer.quantize.embedding.weight.data.mul_(2)
    first.tokenizer.save_pretrained(tmp_path)
    again = VQTask(replace(ANCHORED, init={"vq": str(tmp_path)}))
    assert torch.equal(again.tokenizer.quantize.embedding.weight, first.tokenizer.quantize.embedding.weight)
    assert torch.equal(again.model.anchor.components.mean, first.model.anchor.components.mean)
