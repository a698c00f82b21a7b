"""Frechet distance between Gaussians (FID: arXiv 1706.08500) without a matrix square root.

``|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)``: for any factors ``S = L L^T`` the last trace is the nuclear norm
of ``L1^T L2``, a plain sum of singular values. No square root is taken of an eigenvalue that is zero but for rounding,
so the value is exact for singular covariances (fewer pictures than dimensions), where ``sqrtm`` is off by 1e-7 to 1e-5.
The published implementations (pytorch-fid, clean-fid, ADM) call ``scipy.linalg.sqrtm``; for covariances of full rank
the values agree to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.eval.sets.interface import Measurement, Metric, PictureSet, check_counts
from vistok.eval.sets.statistics import FeatureStatistics


def covariance_factor(covariance: Tensor) -> Tensor:
    """Returns a factor L [d, r] with ``L @ L.T == covariance`` [d, d], r its numerical rank.

    Cholesky for well-conditioned covariances; otherwise the eigenvectors of the eigenvalues above rounding noise.
    """
    noise = len(covariance) * torch.finfo(covariance.dtype).eps
    factor, failed = torch.linalg.cholesky_ex(covariance)
    pivots = factor.diagonal().square()
    if not failed and pivots.min() > 100 * noise * pivots.max():
        return factor
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance)
    kept = eigenvalues > noise * eigenvalues[-1].clamp(min=torch.finfo(covariance.dtype).tiny)
    return eigenvectors[:, kept] * eigenvalues[kept].sqrt()


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Returns the Frechet distance between the Gaussians of two feature sets, unclipped: equal sets may give -1e-9.

    Raises:
        VistokError: if the dimensions differ or a statistic is not finite.
    """
    if a.dim != b.dim:
        raise VistokError(f"features of {a.dim} and {b.dim} dimensions cannot be compared: use one extractor for both.")
    covariance_a, covariance_b = a.covariance, b.covariance.to(a.mean.device)
    gap = a.mean - b.mean.to(a.mean.device)
    if not (gap.isfinite().all() and covariance_a.isfinite().all() and covariance_b.isfinite().all()):
        raise VistokError(
            "the feature statistics contain NaN or infinity: check the pictures and the network's weights."
        )
    cross = covariance_factor(covariance_a).T @ covariance_factor(covariance_b)
    overlap = torch.linalg.svdvals(cross).sum() if cross.numel() else cross.new_zeros(())
    return (gap @ gap + covariance_a.trace() + covariance_b.trace() - 2 * overlap).item()


def frechet_curve(
    reference: FeatureStatistics, features: Tensor, points: int = 15, smallest: int = 5000, seed: int = 0
) -> tuple[list[int], list[float]]:
    """Returns Frechet distances of random subsets of growing size: how much of a value is the bias of its count.

    Args:
        reference: statistics of the reference set.
        features: [n, d] features of the samples.
        points: number of sizes, evenly spaced up to n.
        smallest: the smallest of them, if the set has ten times that many.
        seed: of the subsets.

    Returns:
        Sizes and distances.
    """
    n = len(features)
    sizes = torch.linspace(min(smallest, max(n // 10, 2)), n, points, dtype=torch.float64).long().tolist()
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for size in sizes:
        chosen = torch.randperm(n, generator=generator)[:size].to(features.device)
        distances.append(frechet_distance(reference, FeatureStatistics.of(features[chosen])))
    return sizes, distances


def check_curve(samples: PictureSet) -> None:
    """Refuse samples too few for a curve of the distance: a line needs subsets of two sizes, of 2 pictures or more.

    Raises:
        VistokError: there are fewer than 3.
    """
    check_counts("a curve of the distance", 3, samples)


def frechet_distance_infinity(sizes: list[int], distances: list[float]) -> float:
    """Returns the distance at infinitely many samples: the intercept of :func:`frechet_curve` regressed on 1/N.

    arXiv 1911.07023, with the sizes of dgm-eval.
    """
    inverse = 1 / torch.tensor(sizes, dtype=torch.float64)
    design = torch.stack([torch.ones_like(inverse), inverse], dim=1)
    values = torch.tensor(distances, dtype=torch.float64)[:, None]
    return torch.linalg.lstsq(design, values).solution[0].item()


@dataclass(frozen=True)
class Frechet(Metric):
    """``fid``: called FID on the Inception network alone, on others ``fd-dinov2``, ``fd-scenes-features``..."""

    from_statistics = True

    def check(self, reference: PictureSet, samples: PictureSet) -> None:
        check_counts("a Frechet distance", 2, reference, samples)

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        return Measurement(frechet_distance(reference.statistics(), samples.statistics()))

    def title(self, name: str, extractor: str) -> str:
        return name if extractor == "inception" else f"fd-{extractor}{name.removeprefix('fid')}"


@dataclass(frozen=True)
class SpatialFrechet(Metric):
    """``sfid`` (arXiv 2103.03841): the distance on spatial features."""

    outputs = ("spatial",)
    extractors = ("inception",)
    from_statistics = True

    def check(self, reference: PictureSet, samples: PictureSet) -> None:
        check_counts("a Frechet distance", 2, reference, samples)
        if reference.stored is not None:
            reference.statistics("spatial")

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        return Measurement(frechet_distance(reference.statistics("spatial"), samples.statistics("spatial")))


@dataclass(frozen=True)
class FrechetInfinity(Frechet):
    """``fid-infinity``: the distance extrapolated to infinitely many samples."""

    def check(self, reference: PictureSet, samples: PictureSet) -> None:
        super().check(reference, samples)
        check_curve(samples)

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        curve = frechet_curve(reference.statistics(), samples.need_shards().load())
        return Measurement(frechet_distance_infinity(*curve))
