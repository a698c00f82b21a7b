"""Metrics beside those of the packages that people use, on the same features; skipped, and counted, without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.inception_score import inception_score
from vistok.eval.sets.kernel import kernel_distance
from vistok.eval.sets.manifold import manifold_metrics
from vistok.eval.sets.statistics import FeatureStatistics


@pytest.fixture(scope="module")
def features() -> tuple[torch.Tensor, torch.Tensor]:
    """Two sets of correlated, skewed features, [400, 48] and [360, 48]."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(48, 48, generator=generator)
    first, second = (torch.randn(n, 48, generator=generator) @ mixing for n in (400, 360))
    return first.relu(), (1.1 * second + 0.2).relu()


def moments(features: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    x = features.double().numpy()
    return x.mean(0), np.cov(x, rowvar=False)


def ours(features: tuple[torch.Tensor, torch.Tensor]) -> float:
    return frechet_distance(*map(FeatureStatistics.of, features))


@pytest.mark.parametrize("package", ["pytorch_fid", "cleanfid", "torch_fidelity", "torchmetrics"])
def test_the_frechet_distance_is_theirs(features, package):
    (mean1, cov1), (mean2, cov2) = map(moments, features)
    if package == "pytorch_fid":
        theirs = pytest.importorskip("pytorch_fid.fid_score").calculate_frechet_distance
        found = theirs(mean1, cov1, mean2, cov2)
    elif package == "cleanfid":
        found = pytest.importorskip("cleanfid.fid").frechet_distance(mean1, cov1, mean2, cov2)
    elif package == "torch_fidelity":
        theirs = pytest.importorskip("torch_fidelity.metric_fid").fid_statistics_to_metric
        first, second = ({"mu": m, "sigma": c} for m, c in ((mean1, cov1), (mean2, cov2)))
        found = theirs(first, second, verbose=False)["frechet_inception_distance"]
    else:
        theirs = pytest.importorskip("torchmetrics.image.fid")._compute_fid
        found = float(theirs(*map(torch.from_numpy, (mean1, cov1, mean2, cov2))))
    assert ours(features) == pytest.approx(float(found), abs=4e-6)


def test_the_inception_score_is_torch_fidelitys(features):
    theirs = pytest.importorskip("torch_fidelity.metric_isc").isc_features_to_metric
    found = theirs(features[0].double(), splits=10, shuffle=True, rng_seed=2020)
    score = inception_score(features[0], "torch-fidelity", splits=10, seed=2020)
    assert score.mean == pytest.approx(found["inception_score_mean"], abs=1e-9)
    assert score.std == pytest.approx(found["inception_score_std"], abs=1e-9)


def test_the_kernel_distance_is_torch_fidelitys(features):
    theirs = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    options = {"kid_subsets": 20, "kid_subset_size": 100, "kid_degree": 3, "kid_gamma": None, "kid_coef0": 1}
    found = theirs(*features, **options, rng_seed=2020, verbose=False)
    distance = kernel_distance(*features, subsets=20, subset_size=100, seed=2020)
    assert distance.mean == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-5)
    assert distance.std == pytest.approx(found["kernel_inception_distance_std"], rel=1e-4)


def test_precision_and_recall_are_torch_fidelitys(features):
    theirs = pytest.importorskip("torch_fidelity.metric_prc").prc_features_to_metric
    real, fake = features
    found = theirs(fake, real, prc_neighborhood=3, prc_batch_size=1000, verbose=False, save_cpu_ram=False)
    manifold = manifold_metrics(real, fake, k=3)
    assert manifold.precision == pytest.approx(found["precision"], abs=1e-6)
    assert manifold.recall == pytest.approx(found["recall"], abs=1e-6)
