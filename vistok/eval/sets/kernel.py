"""Kernel distances: KID (arXiv 1801.01401) and CMMD (arXiv 2401.09603).

KID's subsets are drawn as torch-fidelity draws them (one ``RandomState``, per subset first from the first set, then
from the second); clean-fid draws the same way without a seed. So the value depends in its last digits on which set
comes first: here the reference does, and in torch-fidelity's usual call the samples do (``--input1 samples --input2
reference``), which ``order="torch-fidelity"`` follows to reproduce its figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.eval.sets.blocks import Blocks, StoredBlocks, blocks_of, gather_rows, pairs
from vistok.eval.sets.interface import Measurement, Metric, PictureSet

HELD_ROWS = 8192  # features of KID's subsets that are held at a time, of each side
Estimator = Literal["unbiased", "biased", "ustat"]


class MeanStd(NamedTuple):
    """Mean and population standard deviation over subsets or splits."""

    mean: float
    std: float


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Returns KID's kernel ``(x.y / d + 1)^3``: [n, d], [m, d] -> [n, m]."""
    return (x @ y.mT / x.shape[-1] + 1) ** 3


def gaussian_kernel(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    """Returns ``exp(-|x - y|^2 / (2 sigma^2))``: [n, d], [m, d] -> [n, m]."""
    squared = x.square().sum(-1)[..., :, None] + y.square().sum(-1)[..., None, :] - 2 * x @ y.mT
    return (squared / (-2 * sigma**2)).exp()


def squared_mmd(k_xx: Tensor, k_yy: Tensor, k_xy: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Returns squared maximum mean discrepancies from kernel matrices [..., m, m] (leading dimensions are batched).

    Args:
        k_xx: kernel within the first set.
        k_yy: kernel within the second set.
        k_xy: kernel between them.
        estimator: ``"unbiased"`` leaves the diagonals of the two inner kernels out (may be slightly negative),
            ``"ustat"`` leaves the cross diagonal out as well, ``"biased"`` keeps all.

    Returns:
        [...] in the kernels' dtype.
    """
    m, n = k_xy.shape[-2:]
    sum_xx, sum_yy, sum_xy = (k.sum((-2, -1)) for k in (k_xx, k_yy, k_xy))
    if estimator == "biased":
        return sum_xx / m**2 + sum_yy / n**2 - 2 * sum_xy / (m * n)
    sum_xx = sum_xx - k_xx.diagonal(dim1=-2, dim2=-1).sum(-1)
    sum_yy = sum_yy - k_yy.diagonal(dim1=-2, dim2=-1).sum(-1)
    inner = sum_xx / (m * (m - 1)) + sum_yy / (n * (n - 1))
    if estimator == "ustat":
        return inner - 2 * (sum_xy - k_xy.diagonal(dim1=-2, dim2=-1).sum(-1)) / (m * (m - 1))
    return inner - 2 * sum_xy / (m * n)


def polynomial_mmd(x: Tensor, y: Tensor, estimator: Estimator = "unbiased") -> Tensor:
    """Returns the squared MMD of KID between feature sets [..., m, d] and [..., n, d], in float64."""
    x, y = x.double(), y.double()
    return squared_mmd(polynomial_kernel(x, x), polynomial_kernel(y, y), polynomial_kernel(x, y), estimator)


def kid_subsets(n1: int, n2: int, subsets: int, subset_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns indices [subsets, subset_size] into the two sets, drawn without replacement in torch-fidelity's order.

    Raises:
        VistokError: if a set is smaller than a subset.
    """
    if min(n1, n2) < subset_size:
        raise VistokError(
            f"KID subsets of {subset_size} need as many pictures in both sets, got {n1} and {n2}: "
            f"lower the subset size to at most {min(n1, n2)}."
        )
    random = np.random.RandomState(seed)
    first, second = [], []
    for _ in range(subsets):
        first.append(random.choice(n1, subset_size, replace=False))
        second.append(random.choice(n2, subset_size, replace=False))
    return np.stack(first), np.stack(second)


def kernel_distance(
    features1: Tensor | Blocks,
    features2: Tensor | Blocks,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 2020,
) -> MeanStd:
    """Returns the kernel inception distance, mean and population std over subsets (not multiplied by 1000).

    Args:
        features1: [n1, d], held or in blocks.
        features2: [n2, d].
        subsets: number of subsets.
        subset_size: pictures in each.
        seed: of the subsets.

    Raises:
        VistokError: if a set is smaller than a subset, or a feature is not finite.
    """
    sets = [blocks_of(features) for features in (features1, features2)]
    indices = [torch.from_numpy(x) for x in kid_subsets(len(sets[0]), len(sets[1]), subsets, subset_size, seed)]
    values = []
    for chosen in zip(*(index.split(max(1, HELD_ROWS // subset_size)) for index in indices), strict=True):
        x, y = (gather_rows(each, index) for each, index in zip(sets, chosen, strict=True))
        values += [polynomial_mmd(a, b) for a, b in zip(x, y, strict=True)]
    values = torch.stack(values)
    return MeanStd(values.mean().item(), values.std(correction=0).item())


def cmmd(
    embeddings1: Tensor | Blocks,
    embeddings2: Tensor | Blocks,
    sigma: float = 10.0,
    scale: float = 1000.0,
    chunk: int = 2048,
) -> float:
    """Returns the CLIP maximum mean discrepancy: biased estimator on L2-normalised embeddings, times ``scale``.

    Args:
        embeddings1: [n1, d] CLIP image embeddings, normalised here.
        embeddings2: [n2, d].
        sigma: width of the Gaussian kernel.
        scale: factor of the published figures.
        chunk: rows and columns of a kernel matrix that are held at once.

    Raises:
        VistokError: an embedding is not finite.
    """
    x, y = (blocks_of(embeddings, chunk) for embeddings in (embeddings1, embeddings2))

    def unit(rows: Tensor) -> Tensor:
        return torch.nn.functional.normalize(rows.double(), dim=-1)

    def mean_kernel(a: Blocks, b: Blocks) -> Tensor:
        parts = (gaussian_kernel(unit(rows), unit(others), sigma).sum() for _, rows, _, others in pairs(a, b))
        return sum(parts) / (len(a) * len(b))

    return scale * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)).item()


ORDERS = ("reference-first", "torch-fidelity")


@dataclass(frozen=True)
class KernelDistance(Metric):
    """``kid``: kernel inception distance.

    Attributes:
        subsets: how many are drawn.
        subset_size: pictures of each side in a subset.
        order: which side subsets are drawn of first: ``reference-first``, or ``torch-fidelity`` (the samples).
    """

    subsets: int = 100
    subset_size: int = 1000
    order: str = ORDERS[0]

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise unknown_name("order of KID's subsets", self.order, list(ORDERS))
        if self.subsets < 1 or self.subset_size < 2:
            raise VistokError("KID needs at least one subset, of at least 2 pictures.")

    def check(self, reference: PictureSet, samples: PictureSet) -> None:
        counts = [side.count for side in (reference, samples) if side.count is not None]
        if counts and min(counts) < self.subset_size:
            raise VistokError(
                f"KID draws subsets of {self.subset_size} pictures, and one side has {min(counts)}: give --metrics "
                f"kid:subset_size={min(counts)} or less, and say so beside the value."
            )

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        sides = (reference, samples) if self.order == ORDERS[0] else (samples, reference)
        features = (StoredBlocks(side.need_shards()) for side in sides)
        return Measurement(*kernel_distance(*features, self.subsets, self.subset_size))


@dataclass(frozen=True)
class ClipDiscrepancy(Metric):
    """``cmmd``: CLIP maximum mean discrepancy."""

    extractors = ("clip",)

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        return Measurement(cmmd(*(StoredBlocks(side.need_shards()) for side in (reference, samples))))
