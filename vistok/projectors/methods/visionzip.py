"""VisionZip (arXiv 2412.04467): dominant tokens by CLS attention, the others merged into contextual ones. No training.

From the layer before the last: the CLS token and the patches that it attends to most stay as they are; of the
remaining, evenly spaced targets each gain the mean of the tokens that are most like them by key. Differs from the
release: nothing is patched process-wide, any attention implementation, any batch; pictures in crops keep raster order
with CLS tokens before and contextual tokens after; towers whose projector cannot take CLS go without it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import (
    LEADING,
    TRAILING,
    Compressor,
    ImageTokens,
    Kept,
    Needs,
    budget,
    check_keep,
    everything,
    top_tokens,
)

CONTEXTUAL_SHARE = 10 / 64  # the published splits: 64 = 54 + 10, 128 = 108 + 20, 192 = 162 + 30


def contextual_tokens(hidden: Tensor, metric: Tensor, count: int) -> Tensor:
    """Merge tokens into ``count`` of them.

    Args:
        hidden: [n, C].
        metric: what similarity is measured on, [n, d].
        count: targets, 0..n.

    Returns:
        [count, C]: each target plus the mean of the tokens nearest to it.
    """
    n = len(hidden)
    if count == 0:
        return hidden[:0]
    targets = torch.arange(count, device=hidden.device) * max(1, n // count)
    is_target = torch.zeros(n, dtype=torch.bool, device=hidden.device)
    is_target[targets] = True
    unit = F.normalize(metric.float(), dim=-1)
    joins = (unit[~is_target] @ unit[targets].T).argmax(1)  # [n - count]
    sums = torch.zeros_like(hidden[targets]).index_add_(0, joins, hidden[~is_target])
    members = torch.bincount(joins, minlength=count).clamp(min=1)
    return hidden[targets] + sums / members[:, None].to(hidden.dtype)


class VisionZip(Compressor):
    """Keeps CLS, the patches that it attends to most, and merged tokens of the rest.

    Args:
        keep: tokens of a view (int), or share of them (float), CLS and contextual ones included.
        contextual: how many of them are merged tokens; 10 in 64 if None.
    """

    name = "visionzip"
    newlines = "none"

    def __init__(self, keep: int | float = 0.25, contextual: int | None = None) -> None:
        self.keep = check_keep(keep)
        if contextual is not None and contextual < 0:
            raise VistokError(f"contextual is {contextual}: give a number of merged tokens from 0.")
        self.contextual = contextual

    def needs(self, layers: int) -> Needs:
        return Needs(attention=(layers - 2,))

    def select(self, image: ImageTokens) -> list[Kept]:
        counts = budget(self.keep, image.valid)
        if counts == image.valid.sum(1).tolist():
            return everything(image)
        layer = image.attention[image.layers - 2]
        scores, metric = layer.saliency().sum(1), layer.mean_keys()
        merged = [round(n * CONTEXTUAL_SHARE) if self.contextual is None else min(self.contextual, n) for n in counts]
        with_cls = [image.cls is not None and n > m for n, m in zip(counts, merged, strict=True)]
        patches = [n - m - c for n, m, c in zip(counts, merged, with_cls, strict=True)]
        dominant = top_tokens(scores, patches, image.valid)
        return [
            self._view(image, view, dominant[view], merged[view], with_cls[view], metric[view])
            for view in range(len(counts))
        ]

    def _view(
        self, image: ImageTokens, view: int, dominant: Tensor, count: int, with_cls: bool, metric: Tensor
    ) -> Kept:
        rest = image.valid[view].clone()
        rest[dominant] = False
        contextual = contextual_tokens(image.hidden[view][rest], metric[rest], count)
        cls = image.cls[view] if with_cls else contextual[:0]
        places = [dominant.new_full((len(cls),), LEADING), dominant, dominant.new_full((count,), TRAILING)]
        return Kept(torch.cat(places), torch.cat([cls, image.hidden[view][dominant], contextual]))
