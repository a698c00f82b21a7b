"""Clusters of tokens by density peaks (DPC-KNN, Du et al. 2016), as several compressors use them.

A token is a centre if it is dense, by its nearest neighbours, and far from denser ones. The released codes of the video
methods add noise to the densities so that no two are equal; here the earlier of two equally dense tokens counts as
denser. SparseVLM's release leaves ties as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor


def peak_scores(x: Tensor, neighbours: int, break_ties: bool = True) -> tuple[Tensor, Tensor]:
    """Returns how well each token would serve as the centre of a cluster, and the distances between tokens.

    Args:
        x: tokens, [n, D].
        neighbours: how many nearest tokens a density is computed from, the token itself included; all if fewer.
        break_ties: whether the earlier of two equally dense tokens counts as denser; if not, neither does.

    Returns:
        Scores [n] and distances over the square root of D, [n, n], both float32.
    """
    # Without the product of matrices, which leaves rounding where tokens are equal.
    distances = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist") * x.shape[1] ** -0.5
    nearest = distances.topk(min(neighbours, len(x)), largest=False).values
    density = torch.exp(-nearest.square().mean(1))
    order = -density.argsort(descending=True, stable=True).argsort() if break_ties else density
    denser = order[None] > order[:, None]
    apart = torch.where(denser, distances, distances.max()).min(1).values
    return density * apart, distances


def cluster(x: Tensor, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Parts tokens into clusters.

    Args:
        x: tokens, [n, D].
        count: of clusters, 1..n.
        neighbours: see :func:`peak_scores`.

    Returns:
        Centres, ascending, int64 [count], and the cluster of each token, int64 [n]; see :func:`owners`.
    """
    scores, distances = peak_scores(x, neighbours)
    centres = scores.argsort(descending=True, stable=True)[:count].sort().values
    return centres, owners(distances, centres)


def owners(distances: Tensor, centres: Tensor) -> Tensor:
    """Returns the cluster of each token: that of the nearest centre, and a centre's own.

    Args:
        distances: between tokens, [n, n].
        centres: of the clusters, int64 [k].

    Returns:
        Places in ``centres``, int64 [n].
    """
    owner = distances[:, centres].argmin(1)
    owner[centres] = torch.arange(len(centres), device=centres.device)
    return owner


def means(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Mean of the values [n, C] of each of ``count`` groups, [count, C]; zeros for a group without any."""
    sums = values.new_zeros(count, values.shape[1]).index_add_(0, owner, values)
    sizes = torch.bincount(owner, minlength=count).clamp(min=1)
    return sums / sizes[:, None].to(values.dtype)
