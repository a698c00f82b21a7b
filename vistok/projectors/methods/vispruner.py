"""VisPruner (arXiv 2412.01818): half of the tokens by CLS attention, the other half by what is left when likes go.

The second half starts from all other tokens in falling order of attention; in each round the tokens at even places that
are most like one at an odd place are dropped, at most eight. Differs from the release: lists of odd length, which it
cannot split, give the even places one more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import Compressor, ImageTokens, Kept, Needs, budget, check_keep

STEP = 8  # tokens that a round drops


def diverse(features: Tensor, order: Tensor, count: int, step: int = STEP) -> Tensor:
    """Drop tokens that are like others until ``count`` are left.

    Args:
        features: before the projector, [N, C].
        order: tokens to choose among, int64 [R].
        count: 0..R.
        step: tokens that a round drops.

    Returns:
        int64 [count].
    """
    unit = F.normalize(features.float(), dim=-1)
    while len(order) > count:
        even, odd = order[::2], order[1::2]
        if not len(odd):
            return order[:count]
        drop = min(step, len(order) - count, len(even))
        likeness = (unit[even] @ unit[odd].T).max(-1).values
        stays = likeness.argsort(descending=True, stable=True)[drop:]
        order = torch.cat([even[stays], odd])
    return order


def select_view(features: Tensor, attention: Tensor, places: Tensor, count: int, important: float, step: int) -> Tensor:
    """The tokens of a view that stay, ascending.

    Args:
        features: before the projector, [N, C].
        attention: head mean, [N].
        places: tokens that show picture, int64 [P].
        count: how many stay.
        important: share of them that attention chooses.
        step: tokens that a round of the other half drops.
    """
    order = places[attention[places].argsort(descending=True, stable=True)]
    first = int(count * important)
    others = diverse(features, order[first:], count - first, step)
    return torch.cat([order[:first], others]).sort().values


class VisPruner(Compressor):
    """Keeps important and diverse tokens.

    Args:
        keep: tokens of a view (int), or share of them (float).
        important: share of them that attention chooses.
    """

    name = "vispruner"

    def __init__(self, keep: int | float = 0.25, important: float = 0.5) -> None:
        self.keep = check_keep(keep)
        if not 0 <= important <= 1:
            raise VistokError(f"important is {important}: give the share that attention chooses, from 0 to 1.")
        self.important = important

    def needs(self, layers: int) -> Needs:
        return Needs(attention=(layers - 2,))

    def select(self, image: ImageTokens) -> list[Kept]:
        attention = image.attention[image.layers - 2].saliency().mean(1)
        views = zip(
            image.hidden[..., : image.width], attention, image.valid, budget(self.keep, image.valid), strict=True
        )
        return [
            Kept(select_view(x, row, valid.nonzero().squeeze(1), count, self.important, STEP))
            for x, row, valid, count in views
        ]
