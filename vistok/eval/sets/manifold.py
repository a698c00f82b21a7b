"""Nearest-neighbour manifolds: improved precision/recall (arXiv 1904.06991), density/coverage (arXiv 2002.09797),
realism, and the Vendi score (arXiv 2210.02410).

Distances are taken in float64 in row chunks. ADM's evaluator takes them in float16 where they do not overflow, so its
published figures may differ in the fourth digit on close calls. Features that differ by no more than the rounding of
float32 have distance zero, so that repeated pictures are neighbours whatever the order of the sums.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.eval.sets.interface import Measurement, Metric, PictureSet, check_counts
from vistok.eval.sets.statistics import check_finite

SAME = 1e-6  # distance over norm below which two float32 features are one: closer than their own rounding


@dataclass(frozen=True)
class Manifold:
    """How well samples lie among real pictures, and real pictures among samples.

    ``precision`` and ``recall`` count a point on the edge of a ball as inside (ADM, torch-fidelity); the strict pair
    does not (prdc, dgm-eval). ``realism`` is [n_fake], infinite where a sample equals a real picture.
    """

    precision: float
    recall: float
    precision_strict: float
    recall_strict: float
    density: float
    coverage: float
    realism: Tensor


def _distance_rows(x: Tensor, y: Tensor, chunk: int) -> Iterator[Tensor]:
    norms = y.norm(dim=1)
    for rows in x.split(chunk):
        distance = torch.cdist(rows, y, compute_mode="use_mm_for_euclid_dist")
        yield distance.masked_fill_(distance <= SAME * torch.maximum(rows.norm(dim=1)[:, None], norms), 0)


def neighbour_radii(features: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Returns the distance [n] of every feature [n, d] to its k-th nearest neighbour in its own set, not itself.

    Raises:
        VistokError: if the set has no k-th neighbour.
    """
    if len(features) <= k:
        raise VistokError(f"{k} nearest neighbours need more than {k} pictures, got {len(features)}.")
    return torch.cat([rows.kthvalue(k + 1, dim=1).values for rows in _distance_rows(features, features, chunk)])


def manifold_metrics(real: Tensor, fake: Tensor, k: int = 3, chunk: int = 1024) -> Manifold:
    """Returns precision, recall, density, coverage and realism of samples against real pictures.

    Args:
        real: [n_real, d].
        fake: [n_fake, d].
        k: neighbours that make a ball.
        chunk: rows of the distance matrix that are held at once.

    Raises:
        VistokError: a set has no more than ``k`` pictures, or a feature is not finite.
    """
    check_finite(real, fake)
    real, fake = real.double(), fake.double()
    radius_real, radius_fake = neighbour_radii(real, k, chunk), neighbour_radii(fake, k, chunk)
    median = radius_real.quantile(0.5)
    trusted = radius_real < median  # realism ignores balls in sparse regions
    if not trusted.any():  # most balls are of one size, e.g. around repeated pictures
        trusted = radius_real <= median

    inside_real, strictly_inside_real, balls, realism = [], [], [], []
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    recalled_strict = recalled.clone()
    nearest = torch.full((len(real),), torch.inf, dtype=real.dtype, device=real.device)
    start = 0
    for distance in _distance_rows(fake, real, chunk):
        inside_real.append((distance <= radius_real).any(1))
        within = distance < radius_real
        strictly_inside_real.append(within.any(1))
        balls.append(within.sum(1))
        near = distance[:, trusted]
        realism.append((radius_real[trusted] / near).masked_fill(near == 0, torch.inf).amax(1))
        own = radius_fake[start : start + len(distance), None]
        recalled |= (distance <= own).any(0)
        recalled_strict |= (distance < own).any(0)
        nearest = torch.minimum(nearest, distance.amin(0))
        start += len(distance)
    return Manifold(
        precision=torch.cat(inside_real).double().mean().item(),
        recall=recalled.double().mean().item(),
        precision_strict=torch.cat(strictly_inside_real).double().mean().item(),
        recall_strict=recalled_strict.double().mean().item(),
        density=torch.cat(balls).double().mean().item() / k,
        coverage=(nearest < radius_real).double().mean().item(),
        realism=torch.cat(realism),
    )


def vendi_score(features: Tensor) -> float:
    """Returns the effective number of distinct pictures: exp of the entropy of the cosine Gram matrix's eigenvalues.

    Args:
        features: [n, d].

    Raises:
        VistokError: a feature is not finite.
    """
    check_finite(features)
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    gram = unit @ unit.T if len(unit) <= unit.shape[1] else unit.T @ unit  # the same non-zero eigenvalues
    weights = torch.linalg.eigvalsh(gram / len(unit)).clamp(min=0)
    return torch.special.entr(weights).sum().exp().item()


@dataclass(frozen=True)
class PrecisionRecall(Metric):
    """``precision``, with recall, density and coverage beside it; ``neighbours`` make a ball."""

    neighbours: int = 3

    def __post_init__(self) -> None:
        if self.neighbours < 1:
            raise VistokError(f"precision needs at least one neighbour, got {self.neighbours}.")

    def check(self, reference: PictureSet, samples: PictureSet) -> None:
        check_counts(f"precision with {self.neighbours} neighbours", self.neighbours + 1, reference, samples)

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        found = manifold_metrics(*(side.need_shards().load() for side in (reference, samples)), k=self.neighbours)
        details = {"recall": found.recall, "density": found.density, "coverage": found.coverage}
        return Measurement(found.precision, details=details)


@dataclass(frozen=True)
class Vendi(Metric):
    """``vendi``: effective number of distinct samples."""

    from_statistics = True
    reads_reference = False

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        return Measurement(vendi_score(samples.need_shards().load()))
