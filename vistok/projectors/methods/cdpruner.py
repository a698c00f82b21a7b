"""CDPruner (arXiv 2506.10967): tokens that differ and bear on the question, by a determinantal point process.

The kernel is the cosine of the projected features, scaled on both sides by a token's relevance; the greedy choice takes
the token with the largest conditional variance. The release reads the relevance in CLIP's joint space, which the towers
of multimodal models have lost; here it is the cosine of the features with the mean embedding of the prompt's text, and
equal for all tokens where there is no text. Relevance is scaled in each view by itself, so that pictures of a batch do
not mix; the release scales over all views of a call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.projectors.interface import Compressor, ImageTokens, Kept, budget, check_keep

FLOOR = 1e-6


def scaled(relevance: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Relevance between its extremes, above zero up to one."""
    return (relevance - least + FLOOR) / (most - least)


def joint_relevance(image: Tensor, text: Tensor) -> Tensor:
    """Relevance as released: in CLIP's joint space, turned round, over all views of the call together.

    Args:
        image: embeddings of patches, [V, N, C].
        text: embeddings of the text's segments, [M, C].

    Returns:
        [V, N].
    """
    raw = -(F.normalize(image.float(), dim=-1) @ F.normalize(text.float(), dim=-1).T).mean(-1)
    return scaled(raw, raw.min(), raw.max())


def greedy_map(features: Tensor, relevance: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """Greedy choice of the most probable set of a determinantal process.

    Args:
        features: [V, N, D].
        relevance: [V, N].
        count: picks.
        valid: tokens that may be picked, bool [V, N]; all if None.

    Returns:
        Picks in order, int64 [V, count].
    """
    unit = F.normalize(features.float(), dim=-1)
    kernel = relevance[:, :, None] * (unit @ unit.transpose(1, 2)) * relevance[:, None]
    variance = kernel.diagonal(dim1=1, dim2=2).clone()
    if valid is not None:
        variance = variance.masked_fill(~valid, -torch.inf)
    views, tokens = variance.shape
    rows = torch.arange(views, device=kernel.device)
    factors = kernel.new_zeros(count, views, tokens)
    picks = torch.empty(views, count, dtype=torch.int64, device=kernel.device)
    for t in range(count):
        pick = variance.argmax(-1)
        picks[:, t] = pick
        before = factors[:t]
        row = kernel[rows, pick] - torch.einsum("tv,tvn->vn", before[:, rows, pick], before)
        factors[t] = row / variance[rows, pick].clamp(min=FLOOR).sqrt()[:, None]
        variance = variance - factors[t] ** 2
        variance[rows, pick] = -torch.inf
    return picks


class CDPruner(Compressor):
    """Keep tokens that are diverse, and relevant to the prompt's text.

    Args:
        keep: tokens of a view (int), or share of them (float).
    """

    name = "cdpruner"
    newlines = "all"

    def __init__(self, keep: int | float = 0.25) -> None:
        self.keep = check_keep(keep)

    def select(self, image: ImageTokens) -> list[Kept]:
        features, counts = image.features.float(), budget(self.keep, image.valid)
        relevance = torch.ones_like(image.valid, dtype=torch.float32)
        if image.text is not None and len(image.text):
            likeness = F.normalize(features, dim=-1) @ F.normalize(image.text.float().mean(0), dim=-1)
            least = likeness.masked_fill(~image.valid, torch.inf).amin(1, keepdim=True)
            most = likeness.masked_fill(~image.valid, -torch.inf).amax(1, keepdim=True)
            relevance = scaled(likeness, least, most.maximum(least + FLOOR))
        order = greedy_map(features, relevance, max(counts), image.valid)
        return [Kept(row[:count].sort().values) for row, count in zip(order, counts, strict=True)]
