"""Linear probes: what a linear map can read from features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.eval.sets.statistics import check_finite


def linear_probe(
    features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, iterations: int = 100
) -> float:
    """Returns the accuracy on held-out features of a multinomial logistic regression (L-BFGS, a little weight decay).

    Args:
        features: [n, d]; standardised by their own mean and deviation.
        labels: int64 [n].
        held_out: [m, d].
        held_out_labels: int64 [m].
        iterations: of L-BFGS.

    Raises:
        VistokError: fewer than two classes to tell apart, or a feature is not finite.
    """
    check_finite(features, held_out)
    classes = int(labels.max()) + 1
    if len(labels.unique()) < 2:
        raise VistokError("a probe needs at least two classes: take more pictures.")
    mean, deviation = features.mean(0), features.std(0).clamp_min(1e-6)
    x, y = ((part.float() - mean) / deviation for part in (features, held_out))
    weight = torch.zeros(classes, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(classes, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), labels) + 1e-4 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return (F.linear(y, weight, bias).argmax(1) == held_out_labels).float().mean().item()
