"""LLaVA-PruMerge and PruMerge+ (arXiv 2403.15388): keep attention outliers, fold their likes into them.

The last layer's attention with all heads as one; tokens above Q3 + 1.5 IQR stay, so their number follows the picture.
Each gains the attention-weighted sum of its 32 most key-similar tokens, and one more token carries all the rest.
Differs from the release: any batch, no loop over tokens; through ``compress``, tokens reach the language model in
raster order, not by falling attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import TRAILING, Compressor, ImageTokens, Kept, Needs, budget, check_keep, everything


def outlier_count(attention: Tensor, factor: float = 1.5) -> int:
    """How many values lie above the third quartile plus ``factor`` times the interquartile range, at least 1.

    Args:
        attention: [N].
        factor: 1.5 in the paper.
    """
    q1, q3 = torch.quantile(attention, attention.new_tensor([0.25, 0.75]))
    return max(1, int((attention > q3 + factor * (q3 - q1)).sum()))


def merge_into(features: Tensor, keys: Tensor, attention: Tensor, kept: Tensor, neighbours: int = 32) -> Tensor:
    """Folds each kept token's most similar tokens into it, and all tokens that were not kept into one more.

    Args:
        features: [N, C].
        keys: [N, C'].
        attention: weight of each token, [N].
        kept: int64 [n].
        neighbours: tokens folded into each.

    Returns:
        [n+1, C], or [n, C] if every token is kept.
    """
    unit = F.normalize(keys, dim=-1)
    similarity = unit[kept] @ unit.T  # [n, N]
    similarity.scatter_(1, kept[:, None], -torch.inf)
    near = similarity.topk(min(neighbours, len(features) - 1), dim=1).indices  # [n, k]
    weighted = features * attention[:, None].to(features.dtype)
    merged = features[kept] + weighted[near].sum(1)
    rest = torch.ones(len(features), dtype=torch.bool, device=features.device)
    rest[kept] = False
    if len(kept) == len(features):
        return merged
    return torch.cat([merged, weighted[rest].sum(0, keepdim=True)])


class PruMerge(Compressor):
    """Keeps attention outliers and merges the rest into them.

    Args:
        keep: tokens of a view (int) or share of them (float), the token of the rest included; None lets the number
            follow the picture, as in the paper.
        plus: PruMerge+, which adds evenly spaced tokens to the outliers; only with ``keep=None``.
        neighbours: tokens folded into each kept one.
    """

    name = "prumerge"

    def __init__(self, keep: int | float | None = None, plus: bool = False, neighbours: int = 32) -> None:
        if keep is not None and plus:
            raise VistokError("PruMerge+ chooses its own number of tokens: leave keep out, or plus.")
        self.keep = None if keep is None else check_keep(keep)
        self.plus = plus
        self.neighbours = neighbours

    def needs(self, layers: int) -> Needs:
        return Needs(attention=(layers - 1,))

    def select(self, image: ImageTokens) -> list[Kept]:
        if self.keep == 1.0 and isinstance(self.keep, float):
            return everything(image)
        layer = image.attention[image.layers - 1]
        attention, keys = layer.full_width_attention(), layer.patch_keys().float()
        counts = [None] * len(keys) if self.keep is None else budget(self.keep, image.valid)
        views = zip(image.hidden, keys, attention, image.valid, counts, strict=True)
        return [self._merge_view(*view) for view in views]

    def _merge_view(self, hidden: Tensor, keys: Tensor, attention: Tensor, valid: Tensor, count: int | None) -> Kept:
        places = valid.nonzero().squeeze(1)
        if places.numel() == 0 or count == places.numel():
            return Kept(places)
        attention = attention[places]
        number = outlier_count(attention) if count is None else max(1, count - 1)
        kept = attention.topk(number).indices.sort().values
        if self.plus:
            stride = max(1, int(places.numel() / number) // 3)
            chosen = torch.zeros_like(attention, dtype=torch.bool)
            chosen[kept] = True
            chosen[::stride] = True
            kept = chosen.nonzero().squeeze(1)
        tokens = merge_into(hidden[places], keys[places], attention, kept, self.neighbours)
        if count == 1:
            tokens = tokens[:1]
        index = torch.cat([places[kept], places.new_full((len(tokens) - len(kept),), TRAILING)])
        return Kept(index, tokens)
