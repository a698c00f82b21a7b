"""Streaming statistics and the Frechet distance: exact for any split, any rank, any layout."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vistok.errors import VistokError
from vistok.eval.sets.frechet import (
    covariance_factor,
    frechet_curve,
    frechet_distance,
    frechet_distance_infinity,
)
from vistok.eval.sets.reference import load_statistics, save_statistics
from vistok.eval.sets.statistics import FeatureStatistics


def features(n: int, d: int, seed: int = 0, rank: int | None = None, mean: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, rank or d, generator=generator, dtype=torch.float64)
    if rank is not None:
        x = x @ torch.randn(rank, d, generator=generator, dtype=torch.float64)
    return x + mean


def exact_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """The trace term as the nuclear norm of the centred features' cross product: no covariance is ever formed."""
    centred = [(f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (x, y)]
    overlap = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    gap = (x.mean(0) - y.mean(0)).square().sum()
    return (gap + sum(c.square().sum() for c in centred) - 2 * overlap).item()


@pytest.mark.parametrize("seed", range(20))
def test_any_split_over_batches_and_processes_gives_the_one_shot_statistics(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 10, random.integers(1, 7)).tolist()  # empty batches among them
    cut = int(random.integers(0, 6))
    x = features(sum(sizes) + 2, 5, seed, mean=50.0).float()
    parts = [FeatureStatistics.empty(5), FeatureStatistics.empty(5)]
    for i, batch in enumerate(x.split([*sizes, 2])):
        parts[i > cut].update(batch)
    merged = parts[0].merge(parts[1])
    assert merged.count == len(x)
    torch.testing.assert_close(merged.mean, x.double().mean(0), rtol=0, atol=1e-10)
    torch.testing.assert_close(merged.covariance, torch.cov(x.double().T), rtol=0, atol=1e-8)


def test_the_sum_of_squares_form_in_float32_would_be_wrong():
    """Shows that the tolerance above can tell a bad accumulator from a good one."""
    x = features(200, 5, mean=1000.0).float()
    naive = (x.T @ x - len(x) * x.mean(0)[:, None] * x.mean(0)) / (len(x) - 1)
    assert (naive.double() - torch.cov(x.double().T)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("n1", "n2", "d", "rank"),
    [(60, 50, 8, None), (5, 7, 32, None), (2, 2, 6, None), (80, 90, 24, 6), (3, 100, 16, None)],
)
def test_distance_is_exact_for_any_rank(n1, n2, d, rank):
    x, y = features(n1, d, 0, rank), features(n2, d, 1, rank, mean=0.3)
    distance = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    assert distance == pytest.approx(exact_distance(x, y), rel=1e-9, abs=1e-9)


def test_distance_of_a_set_to_itself_is_zero_and_is_not_clipped():
    a = FeatureStatistics.of(features(300, 16))
    assert abs(frechet_distance(a, a)) < 1e-9 * a.covariance.trace()


def test_distance_agrees_with_scipys_square_root_at_full_rank():
    import scipy.linalg

    a, b = FeatureStatistics.of(features(400, 64)), FeatureStatistics.of(features(500, 64, 1) * 1.5 + 0.2)
    root = scipy.linalg.sqrtm((a.covariance @ b.covariance).numpy())
    expected = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * np.trace(root.real)
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("rank", [None, 3])
def test_factor_reproduces_the_covariance_and_has_its_rank(rank):
    covariance = torch.cov(features(50, 10, rank=rank).T)
    factor = covariance_factor(covariance)
    assert factor.shape[1] == (rank or 10)
    torch.testing.assert_close(factor @ factor.T, covariance, rtol=1e-10, atol=1e-10)


def test_constant_features_have_a_distance():
    """A collapsed generator gives one picture only: covariance zero, rank zero."""
    collapsed = FeatureStatistics.of(torch.ones(10, 4))
    real = FeatureStatistics.of(features(50, 4))
    expected = (collapsed.mean - real.mean).square().sum() + real.covariance.trace()
    assert frechet_distance(collapsed, real) == pytest.approx(expected.item(), rel=1e-12)


def test_bad_statistics_are_refused():
    a = FeatureStatistics.of(features(10, 4))
    with pytest.raises(VistokError, match="at least 2 pictures"):
        frechet_distance(a, FeatureStatistics.of(torch.ones(1, 4)))
    with pytest.raises(VistokError, match="4 and 5 dimensions"):
        frechet_distance(a, FeatureStatistics.of(features(10, 5)))
    with pytest.raises(VistokError, match="NaN"):
        frechet_distance(a, FeatureStatistics.of(torch.full((10, 4), torch.nan)))


def test_the_extrapolation_removes_the_bias_of_the_sample_count():
    reference = FeatureStatistics.of(features(20000, 8))
    sizes, distances = frechet_curve(reference, features(3000, 8, 1), smallest=100)
    assert distances[0] > 2 * distances[-1]
    assert abs(frechet_distance_infinity(sizes, distances)) < distances[-1]


def test_intercept_of_an_exact_line():
    assert frechet_distance_infinity([100, 200, 400], [3 + 5 / n for n in (100, 200, 400)]) == pytest.approx(3)


def test_statistics_survive_the_file_and_carry_their_protocol(tmp_path):
    x, spatial = FeatureStatistics.of(features(40, 6)), FeatureStatistics.of(features(40, 3))
    save_statistics(tmp_path / "ref.npz", x, "inception", "abc", "tf1", spatial)
    stored = load_statistics(tmp_path / "ref.npz")
    assert (stored.count, stored.extractor, stored.weights, stored.resize) == (40, "inception", "abc", "tf1")
    assert frechet_distance(stored.features, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(stored.spatial, spatial) == pytest.approx(0, abs=1e-9)
    with np.load(tmp_path / "ref.npz") as file:  # the other libraries read these names
        np.testing.assert_allclose(file["sigma"], np.cov(features(40, 6).numpy(), rowvar=False))
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(file)


@pytest.mark.parametrize(
    ("name", "extra", "resize"),
    [
        ("celeba.npz", {}, None),
        ("ffhq_clean_custom_na.npz", {}, "clean"),
        ("ffhq_legacy_pytorch_train_1024.npz", {}, "pytorch-fid"),
        ("cifar10_legacy_tensorflow_train_32.npz", {}, "tf1"),
        ("VIRTUAL_imagenet256_labeled.npz", {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}, "tf1"),
    ],
)
def test_published_layouts_say_their_resize_where_they_can(tmp_path, name, extra, resize):
    mean, sigma = np.arange(4, dtype=np.float32), 2 * np.eye(4)
    np.savez(tmp_path / name, mu=mean, sigma=sigma, **extra)
    stored = load_statistics(tmp_path / name)
    assert stored.resize == resize and stored.count is None
    assert stored.features.mean.dtype == torch.float64
    torch.testing.assert_close(stored.features.covariance, torch.from_numpy(sigma))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros(3)}, "no statistics"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "do not fit"),
        ({"mu": np.zeros(3), "sigma": np.eye(3), "mu_s": np.zeros(2)}, "no sigma_s"),
    ],
)
def test_broken_statistics_files_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(VistokError, match=message):
        load_statistics(tmp_path / "x.npz")


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "x.npz").write_text("hello")
    with pytest.raises(VistokError, match=r"no \.npz"):
        load_statistics(tmp_path / "x.npz")
    with pytest.raises(VistokError, match=r"written as \.npz"):
        save_statistics(tmp_path / "x.json", FeatureStatistics.of(features(5, 2)), "a", "b", "c")
