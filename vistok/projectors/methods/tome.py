"""Token Merging (ToMe, arXiv 2210.09461): bipartite soft matching merges the most alike tokens. No training.

:func:`merge_tokens` is the paper's step. The paper merges inside every block of the tower; :class:`ToMe` merges what
the tower hands to the projector, in steps of at most half of the tokens, so the tower runs as it is and the
proportional attention of the paper has no place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.projectors.interface import Compressor, ImageTokens, Kept, budget, check_keep


class Merged(NamedTuple):
    """Tokens after a step: values [B, T-r, C], how many patches each stands for [B, T-r, 1], and where they came from.

    ``source`` is the index of the token that each absorbed its likes into, int64 [B, T-r].
    """

    x: Tensor
    size: Tensor
    source: Tensor


def merge_tokens(x: Tensor, size: Tensor, metric: Tensor, r: int, class_token: bool = False) -> Merged:
    """One step of bipartite soft matching with a size-weighted mean.

    Args:
        x: tokens [B, T, C].
        size: patches that each stands for, [B, T, 1].
        metric: what similarity is measured on, [B, T, d].
        r: tokens to merge away; at most half of those that may merge.
        class_token: the first token stays alone.

    Returns:
        Even tokens that stayed, then odd tokens with those merged into them.
    """
    tokens = x.shape[1]
    r = min(r, (tokens - class_token) // 2)
    source = torch.arange(tokens, device=x.device).expand(len(x), -1)
    if r <= 0:
        return Merged(x, size, source)
    unit = F.normalize(metric, dim=-1)
    scores = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    if class_token:
        scores[:, 0] = -torch.inf
    best, partner = scores.max(-1)
    order = best.argsort(dim=-1, descending=True)
    stays, goes = order[:, r:], order[:, :r]
    if class_token:
        stays = stays.sort(dim=1).values
    into = partner.gather(1, goes)

    def fold(values: Tensor) -> Tensor:
        even, odd = values[:, ::2], values[:, 1::2]
        width = values.shape[-1]
        odd = odd.scatter_add(1, into[..., None].expand(-1, -1, width), _rows(even, goes))
        return torch.cat([_rows(even, stays), odd], 1)

    total = fold(size)
    kept_source = torch.cat([source[:, ::2].gather(1, stays), source[:, 1::2]], 1)
    return Merged(fold(x * size) / total, total, kept_source)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


class ToMe(Compressor):
    """Merges the most alike tokens until the budget is met.

    Similarity is that of the projector's input, so any tower will do.

    Args:
        keep: tokens of a view (int), or share of them (float).
    """

    name = "tome"

    def __init__(self, keep: int | float = 0.25) -> None:
        self.keep = check_keep(keep)

    def select(self, image: ImageTokens) -> list[Kept]:
        counts = budget(self.keep, image.valid)
        return [
            self._merge_view(hidden, valid.nonzero().squeeze(1), count, image.width)
            for hidden, valid, count in zip(image.hidden, image.valid, counts, strict=True)
        ]

    @staticmethod
    def _merge_view(hidden: Tensor, places: Tensor, count: int, width: int) -> Kept:
        x, index = hidden[places][None], places
        size = torch.ones_like(x[..., :1])
        while x.shape[1] > count:
            x, size, source = merge_tokens(x, size, x[..., :width], x.shape[1] - count)
            order = index[source[0]].argsort()  # raster order again, so that even and odd stay neighbours
            index, x, size = index[source[0]][order], x[:, order], size[:, order]
        return Kept(index, x[0])
