"""Inception Score (arXiv 1606.03498) in the three flavours that papers print.

All take logits without the classifier's bias, as the original graph gives them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.eval.sets.interface import Measurement, Metric, PictureSet, check_counts
from vistok.eval.sets.kernel import MeanStd
from vistok.eval.sets.statistics import check_finite

Flavour = Literal["torch-fidelity", "adm", "one-split"]
FLAVOURS = ("torch-fidelity", "adm", "one-split")
SPLITS = 10  # of the torch-fidelity flavour


def split_score(logits: Tensor) -> Tensor:
    """Returns ``exp(E KL(p(y|x) || p(y)))`` of one split of logits [n, classes], in float64."""
    log_p = logits.double().log_softmax(-1)
    log_marginal = log_p.logsumexp(0) - np.log(len(log_p))
    return (log_p.exp() * (log_p - log_marginal)).sum(-1).mean().exp()


def inception_score(
    logits: Tensor,
    flavour: Flavour = "torch-fidelity",
    splits: int = SPLITS,
    split_size: int = 5000,
    seed: int | None = 2020,
) -> MeanStd:
    """Returns the Inception Score, mean and population std over splits.

    Args:
        logits: [n, classes] without bias.
        flavour: ``"torch-fidelity"``: shuffled, ``splits`` parts with bounds i*n//splits. ``"adm"``: consecutive
            chunks of ``split_size`` in the given order, the last may be short (guided-diffusion's evaluator).
            ``"one-split"``: everything at once (TiTok's evaluator), above the others by construction.
        splits: parts of the torch-fidelity flavour.
        split_size: chunk of the ADM flavour.
        seed: of the shuffle; None keeps the order.

    Raises:
        VistokError: there are fewer pictures than splits, or a logit is not finite.
    """
    check_finite(logits)
    n = len(logits)
    if flavour == "one-split":
        parts = [logits]
    elif flavour == "adm":
        parts = logits.split(split_size)
    elif flavour == "torch-fidelity":
        if n < splits:
            raise VistokError(f"an Inception Score over {splits} splits needs at least {splits} pictures, got {n}.")
        if seed is not None:
            logits = logits[torch.from_numpy(np.random.RandomState(seed).permutation(n)).to(logits.device)]
        parts = [logits[i * n // splits : (i + 1) * n // splits] for i in range(splits)]
    else:
        raise unknown_name("inception score flavour", flavour, list(FLAVOURS))
    scores = torch.stack([split_score(part) for part in parts])
    return MeanStd(scores.mean().item(), scores.std(correction=0).item())


@dataclass(frozen=True)
class InceptionScore(Metric):
    """``is``: Inception Score of the samples; ``flavour`` is one of :data:`FLAVOURS`."""

    outputs = ("logits",)
    extractors = ("inception",)
    from_statistics = True
    reads_reference = False

    flavour: str = FLAVOURS[0]

    def __post_init__(self) -> None:
        if self.flavour not in FLAVOURS:
            raise unknown_name("inception score flavour", self.flavour, list(FLAVOURS))

    def check(self, reference: PictureSet, samples: PictureSet) -> None:
        if self.flavour == FLAVOURS[0]:
            check_counts(f"an Inception Score over {SPLITS} splits", SPLITS, samples)

    def compute(self, reference: PictureSet, samples: PictureSet) -> Measurement:
        return Measurement(*inception_score(samples.need_shards().load("logits"), self.flavour))
