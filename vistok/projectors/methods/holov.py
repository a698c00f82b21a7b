"""HoloV (arXiv 2510.02912): every part of a picture keeps tokens, more where it is attended to and varied.

The tokens of a view are cut into runs. A run's weight is the mean of its tokens' attention and of how much their
likeness to the others of the run varies; runs share the budget by weight, and keep what is attended to most. Differs
from the release: a run that gets more than it has hands the rest on, where the release fills up with zero tokens; the
order is that of the raster; budget and number of runs are free.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.projectors.interface import Compressor, ImageTokens, Kept, Needs, budget, check_keep

ATTENTION_SCALE, VARIETY_WEIGHT, FLOOR = 1000.0, 0.09, 1e-6


def run_weights(features: list[Tensor], attention: list[Tensor]) -> Tensor:
    """Weight of each run.

    Args:
        features: of each run, [n, D].
        attention: of each run, [n].

    Returns:
        [runs], up to one in all.
    """
    scores = []
    for x, a in zip(features, attention, strict=True):
        unit = F.normalize(x.float(), dim=-1)
        likeness = unit @ unit.T
        likeness.fill_diagonal_(0.0)
        others = max(len(x) - 1, 1)
        mean = likeness.sum(-1) / others
        variety = ((likeness - mean[:, None]) ** 2).sum(-1) / others
        a = ATTENTION_SCALE * a.float()
        scores.append((a + VARIETY_WEIGHT * variety * a.abs().mean() / (variety.abs().mean() + FLOOR)).mean())
    total = torch.stack(scores)
    return total / (total.sum() + FLOOR)


def run_shares(weights: Tensor, count: int) -> list[int]:
    """A budget in whole tokens by weight; the remainder goes one each to the largest weights."""
    shares = (count * weights).floor().long()
    rest = count - int(shares.sum())
    shares[weights.argsort(descending=True, stable=True)[:rest]] += 1
    return shares.tolist()


class HoloV(Compressor):
    """Keeps tokens of every part of a picture.

    Args:
        keep: tokens of a view (int), or share of them (float).
        runs: parts of a view.
    """

    name = "holov"

    def __init__(self, keep: int | float = 0.25, runs: int = 16) -> None:
        self.keep = check_keep(keep)
        self.runs = runs

    def needs(self, layers: int) -> Needs:
        return Needs(attention=(layers - 2,))

    def select(self, image: ImageTokens) -> list[Kept]:
        attention = image.attention[image.layers - 2].saliency().mean(1)
        views = zip(image.features, attention, image.valid, budget(self.keep, image.valid), strict=True)
        return [Kept(self._view(x, a, valid.nonzero().squeeze(1), count)) for x, a, valid, count in views]

    def _view(self, features: Tensor, attention: Tensor, places: Tensor, count: int) -> Tensor:
        runs = [run for run in places.tensor_split(max(1, min(self.runs, len(places)))) if len(run)]
        if not runs:
            return places
        weights = run_weights([features[run] for run in runs], [attention[run] for run in runs])
        shares = run_shares(weights, count)
        over = sum(max(share - len(run), 0) for share, run in zip(shares, runs, strict=True))
        shares = [min(share, len(run)) for share, run in zip(shares, runs, strict=True)]
        for i in weights.argsort(descending=True, stable=True).tolist():
            more = min(over, len(runs[i]) - shares[i])
            shares[i], over = shares[i] + more, over - more
        kept = [run[attention[run].topk(share).indices] for run, share in zip(runs, shares, strict=True)]
        return torch.cat(kept).sort().values
