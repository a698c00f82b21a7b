"""DivPrune (arXiv 2503.02175): keep the most diverse tokens. No training, no CLS token, any vision tower.

Distance is 1 - cosine of the projected features. First the token whose nearest other token is farthest, then greedily
the one with the largest distance to all that were picked. The running minimum makes it O(keep * N) after the
distances; views of a picture run together, without a host sync.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.projectors.interface import Compressor, ImageTokens, Kept, budget, check_keep


def cosine_distance(features: Tensor) -> Tensor:
    """Returns 1 - cosine of all pairs.

    Args:
        features: [..., N, D].

    Returns:
        [..., N, N].
    """
    unit = F.normalize(features, dim=-1)
    return 1 - unit @ unit.transpose(-1, -2)


def max_min_order(distance: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """Returns tokens in the order of greedy max-min selection.

    Args:
        distance: [V, N, N].
        count: picks, at most the number of valid tokens for them all to be valid.
        valid: tokens that may be picked, bool [V, N]; all if None.

    Returns:
        Picks in order, int64 [V, count].
    """
    views, tokens, _ = distance.shape
    diagonal = torch.eye(tokens, dtype=torch.bool, device=distance.device)
    banned = torch.zeros(views, tokens, dtype=torch.bool, device=distance.device) if valid is None else ~valid
    nearest = distance.masked_fill(diagonal | banned[:, None], torch.inf).amin(-1)
    picks = torch.empty(views, count, dtype=torch.int64, device=distance.device)
    for i in range(count):
        pick = nearest.masked_fill(banned, -torch.inf).argmax(-1, keepdim=True)
        picks[:, i] = pick[:, 0]
        banned = banned.scatter(1, pick, True)
        row = distance.gather(1, pick[..., None].expand(-1, -1, tokens))[:, 0]
        nearest = row if i == 0 else torch.minimum(nearest, row)
    return picks


class DivPrune(Compressor):
    """Keeps the most diverse tokens.

    Args:
        keep: tokens of a view (int), or share of them (float). The paper's default is 0.098.
    """

    name = "divprune"

    def __init__(self, keep: int | float = 0.25) -> None:
        self.keep = check_keep(keep)

    def select(self, image: ImageTokens) -> list[Kept]:
        counts = budget(self.keep, image.valid)
        order = max_min_order(cosine_distance(image.features.float()), max(counts), image.valid)
        return [Kept(row[:count].sort().values) for row, count in zip(order, counts, strict=True)]
