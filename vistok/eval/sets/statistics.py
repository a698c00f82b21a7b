"""Mean and covariance of features, streamed in float64.

The memory is one [d, d] matrix however many pictures there are. Batches are merged by the update of Chan, Golub and
LeVeque (1983), which keeps its digits when the mean is large against the spread; the sum-of-squares form does not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError


def check_finite(*features: Tensor) -> None:
    """Refuse features that are no numbers, before a figure is made of them.

    Raises:
        VistokError: one of the tensors [n, d] holds NaN or infinity; the sentence names the first such row.
    """
    for each in features:
        if not (finite := each.isfinite()).all():
            row = int((~finite).flatten(1).any(1).nonzero()[0])
            raise VistokError(
                f"the features contain NaN or infinity (first in picture {row} of {len(each)}): check that picture, "
                "the network's weights and its precision."
            )


class FeatureStatistics:
    """Streaming mean and covariance (ddof 1) of feature vectors.

    Args:
        mean: [d] float64.
        scatter: sum of outer products of the centred features, [d, d] float64.
        count: number of features seen.
    """

    def __init__(self, mean: Tensor, scatter: Tensor, count: int):
        self.mean = mean
        self.scatter = scatter
        self.count = count

    @classmethod
    def empty(cls, dim: int, device: torch.device | str = "cpu") -> FeatureStatistics:
        """Returns the statistics of no feature at all; ``device`` must know float64 (MPS does not)."""
        zeros = torch.zeros(dim, dim + 1, dtype=torch.float64, device=device)
        return cls(zeros[:, 0].contiguous(), zeros[:, 1:].contiguous(), 0)

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Returns the statistics of features [n, d] at once."""
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred, len(features))

    @classmethod
    def from_moments(cls, mean: Tensor, covariance: Tensor, count: int) -> FeatureStatistics:
        """Returns statistics from a stored mean [d] and covariance [d, d] (ddof 1) of ``count`` features."""
        return cls(mean.double(), covariance.double() * (count - 1), count)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @property
    def covariance(self) -> Tensor:
        """Returns the unbiased covariance [d, d] float64.

        Raises:
            VistokError: with fewer than two features.
        """
        if self.count < 2:
            raise VistokError(f"a covariance needs at least 2 pictures, got {self.count}.")
        return self.scatter / (self.count - 1)

    def update(self, features: Tensor) -> FeatureStatistics:
        """Takes in a batch of features [B, d] (any float type); nothing is read back from the device."""
        return self.merge(FeatureStatistics.of(features)) if len(features) else self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Takes in the statistics of other pictures, e.g. of another process; returns ``self``."""
        total = self.count + other.count
        if total == 0:
            return self
        delta = other.mean - self.mean
        self.scatter += other.scatter
        self.scatter.addr_(delta, delta, alpha=self.count * other.count / total)
        self.mean = self.mean + delta * (other.count / total)
        self.count = total
        return self
