"""Nearest-neighbour manifolds: improved precision/recall (arXiv 1904.06991), density/coverage (arXiv 2002.09797),
realism, and the Vendi score (arXiv 2210.02410).

Distances are taken in float64, block by block of both sets. ADM's evaluator takes them in float16 where they do not
overflow, so its published figures may differ in the fourth digit on close calls. Features that differ by no more than
the rounding of float32 have distance zero, so that repeated pictures are neighbours whatever the order of the sums.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.eval.sets.blocks import Blocks, StoredBlocks, blocks_of, pairs
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


def _distance(rows: Tensor, others: Tensor) -> Tensor:
    """Distances [m, n] of features in float64."""
    rows, others = rows.double(), others.double()
    distance = torch.cdist(rows, others, compute_mode="use_mm_for_euclid_dist")
    norms = torch.maximum(rows.norm(dim=1)[:, None], others.norm(dim=1))
    return distance.masked_fill_(distance <= SAME * norms, 0)


def neighbour_radii(features: Tensor | Blocks, k: int, chunk: int = 1024) -> Tensor:
    """Returns the distance [n] of every feature [n, d] to its k-th nearest neighbour in its own set, not itself.

    Raises:
        VistokError: if the set has no k-th neighbour.
    """
    features = blocks_of(features, chunk)
    if len(features) <= k:
        raise VistokError(f"{k} nearest neighbours need more than {k} pictures, got {len(features)}.")
    radii = []
    for rows in features:
        nearest = rows.new_empty(len(rows), 0, dtype=torch.float64)
        for others in features:
            nearest = torch.cat([nearest, _distance(rows, others)], 1)
            nearest = nearest.topk(min(k + 1, nearest.shape[1]), dim=1, largest=False).values
        radii.append(nearest.amax(1))
    return torch.cat(radii)


def manifold_metrics(real: Tensor | Blocks, fake: Tensor | Blocks, k: int = 3, chunk: int = 1024) -> Manifold:
    """Returns precision, recall, density, coverage and realism of samples against real pictures.

    Args:
        real: [n_real, d], held or in blocks.
        fake: [n_fake, d].
        k: neighbours that make a ball.
        chunk: rows and columns of the distance matrix that are held at once.

    Raises:
        VistokError: a set has no more than ``k`` pictures, or a feature is not finite.
    """
    real, fake = blocks_of(real, chunk), blocks_of(fake, chunk)
    radius_real, radius_fake = neighbour_radii(real, k), neighbour_radii(fake, k)
    median = radius_real.quantile(0.5)
    trusted = radius_real < median  # realism ignores balls in sparse regions
    if not trusted.any():  # most balls are of one size, e.g. around repeated pictures
        trusted = radius_real <= median

    inside_real, strictly_inside_real, recalled, recalled_strict = (
        torch.zeros(len(side), dtype=torch.bool, device=radius_real.device) for side in (fake, fake, real, real)
    )
    balls, realism = torch.zeros_like(radius_fake, dtype=torch.int64), torch.zeros_like(radius_fake)
    nearest = torch.full_like(radius_real, torch.inf)
    for above, rows, before, others in pairs(fake, real):
        row, column = slice(above, above + len(rows)), slice(before, before + len(others))
        distance, radius, own = _distance(rows, others), radius_real[column], radius_fake[row, None]
        inside_real[row] |= (distance <= radius).any(1)
        within = distance < radius
        strictly_inside_real[row] |= within.any(1)
        balls[row] += within.sum(1)
        share = (radius / distance).masked_fill(distance == 0, torch.inf).masked_fill(~trusted[column], 0)
        realism[row] = torch.maximum(realism[row], share.amax(1))
        recalled[column] |= (distance <= own).any(0)
        recalled_strict[column] |= (distance < own).any(0)
        nearest[column] = torch.minimum(nearest[column], distance.amin(0))
    return Manifold(
        precision=inside_real.double().mean().item(),
        recall=recalled.double().mean().item(),
        precision_strict=strictly_inside_real.double().mean().item(),
        recall_strict=recalled_strict.double().mean().item(),
        density=balls.double().mean().item() / k,
        coverage=(nearest < radius_real).double().mean().item(),
        realism=realism,
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
        sides = (StoredBlocks(side.need_shards()) for side in (reference, samples))
        found = manifold_metrics(*sides, k=self.neighbours)
        details = {"recall": found.recall, "density": found.density, "coverage": found.coverage}
        return Measurement(found.precision, details=details)


@dataclass(frozen=True)
class Vendi(Metric):
    """``vendi``: effective number of distinct samples."""

    from_statistics = True
    reads_reference = False

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        return Measurement(vendi_score(samples.need_shards().load()))
