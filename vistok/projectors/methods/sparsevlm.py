"""SparseVLM (arXiv 2410.04417): the words of a question that look at the picture rank its tokens, in three stages.

Raters are the text tokens behind the picture that its tokens are most like, by the embeddings. Behind layers 2, 6 and
15 (of 32) the raters' attention, mean over heads and raters, ranks the visual tokens, and published budgets say how
many go on. Version 1 recycles: the best of those that go are clustered by density peaks, and each cluster goes on as
one token. Version 2 merges nothing, divides attention by a profile of the rotary positions, which fades with distance,
and reads the heads that look at the picture most.

Differs from the release, which forks the Llama classes for one prompt at a time: rows of the raters alone in the place
of attention matrices, any batch and padding, any number of pictures and tokens. Tokens keep their position numbers, and
a cluster stands where its centre was; version 1's release counts positions anew and puts clusters behind what stays.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import LayerView, check_keep
from vistok.projectors.methods.density_peaks import means, owners, peak_scores
from vistok.projectors.methods.fastv import attention_rows, best_visual
from vistok.projectors.methods.pyramiddrop import StagedCompressor

STAGES = (3 / 32, 7 / 32, 16 / 32)  # of the depth: the layers behind 2, 6 and 15 of 32
TOKENS = 576  # of the pictures that the budgets were published for
BUDGETS = {  # by version: tokens on average, and what goes on behind each stage
    1: {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    2: {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
RECYCLED, CLUSTER = 0.3, 10  # share of what goes that is clustered, and tokens of a cluster
HEADS = 14 / 32  # share of the heads that version 2 reads


def text_raters(visual: Tensor, text: Tensor) -> Tensor:
    """Returns which text tokens rank the picture: those that its tokens resemble more than the mean text token.

    Args:
        visual: embeddings [V, D].
        text: embeddings [T, D].

    Returns:
        bool [T].
    """
    likeness = (visual.float() @ text.float().T).softmax(-1).mean(0)
    return likeness > likeness.mean()


def recycled(scores: Tensor, fraction: float = RECYCLED) -> Tensor:
    """Returns the indices of the dropped tokens that are clustered instead of lost: int(fraction * n) + 1 of n.

    Args:
        scores: of the n dropped tokens; the best are clustered.
        fraction: share of them.
    """
    return scores.topk(min(len(scores), int(fraction * len(scores)) + 1)).indices


def cluster_means(tokens: Tensor, divisor: int = CLUSTER) -> tuple[Tensor, Tensor]:
    """Returns the means of clusters by density peaks, which look at as many neighbours as there are clusters.

    Args:
        tokens: [n, D].
        divisor: how many tokens a cluster has, roughly.

    Returns:
        The clusters' means [k, D], k = int(n / divisor) + 1 but at most n, and the index of each cluster's centre [k],
        the surest centre first.
    """
    clusters = min(len(tokens), int(len(tokens) / divisor) + 1)
    scores, distances = peak_scores(tokens, clusters, break_ties=False)
    centres = scores.topk(clusters).indices
    return means(tokens.float(), owners(distances, centres), clusters).to(tokens.dtype), centres


def budget_shares(share: float, version: int) -> tuple[float, float, float]:
    """Shares of the visual tokens that go on behind each stage, by the share that stays on average.

    Published budgets are met; between them, and to all and to none, lines are drawn.
    """
    table = {0.0: (0.0, 0.0, 0.0), 1.0: (1.0, 1.0, 1.0)}
    table |= {budget / TOKENS: tuple(n / TOKENS for n in counts) for budget, counts in BUDGETS[version].items()}
    for (low, first), (high, last) in pairwise(sorted(table.items())):
        if share <= high:
            along = (share - low) / (high - low)
            return tuple(a + along * (b - a) for a, b in zip(first, last, strict=True))
    return table[1.0]


class SparseVLM(StagedCompressor):
    """Lets the question's words rank the visual tokens, in three stages.

    Args:
        keep: budget of visual tokens, as published: 192, 128, 96 and 64 of 576, or a share of the prompt's (float).
        version: 1, or 2 ("SparseVLM+").
        layers: the first layer of each stage; the published ones as fractions of the depth if None.
    """

    name = "sparsevlm"
    stages = STAGES

    def __init__(self, keep: int | float = 1 / 3, version: int = 2, layers: tuple[int, int, int] | None = None) -> None:
        self.keep = check_keep(keep)
        if version not in BUDGETS:
            raise VistokError(f"version is {version!r}: SparseVLM has 1 and 2.")
        if layers is not None and len(tuple(layers)) != len(STAGES):
            raise VistokError(f"layers are {layers!r}: the budgets of SparseVLM are of three stages.")
        self.version = version
        self.chosen = None if layers is None else tuple(layers)

    def raters(self, states: Tensor, visual: Tensor, present: Tensor) -> Tensor:
        columns = torch.arange(visual.shape[1], device=visual.device)
        out = torch.zeros_like(visual)
        for row, hidden, seen, there in zip(out, states, visual, present, strict=True):
            text = there & ~seen
            behind = text & (columns > (columns * seen).max())
            text = torch.where(behind.any(), behind, text)
            row[text] = text_raters(hidden[seen], hidden[text])
            if not bool(row.any()):  # all alike
                row |= text
        return out

    def select(self, view: LayerView) -> Tensor | tuple[Tensor, Tensor]:
        shares = [budget_shares(self._share(whole), self.version)[-1 - view.later] for whole in view.whole]
        left = view.visual.sum(1).tolist()
        counts = [
            max(1, min(round(share * whole), here - 1)) if here else 0
            for share, whole, here in zip(shares, view.whole, left, strict=True)
        ]
        scores = self._scores(view)
        stays = best_visual(scores, view.visual, counts)
        if self.version == 2:
            return stays
        states = []
        for row, hidden, mine, seen in zip(stays, view.states, scores, view.visual, strict=True):
            gone = (seen & ~row).nonzero().squeeze(1)
            if len(gone):
                again = gone[recycled(mine[gone])]
                means, centres = cluster_means(hidden[again])
                hidden = hidden.index_copy(0, again[centres], means)
                row[again[centres]] = True
            states.append(hidden)
        return stays, torch.stack(states)

    def _share(self, whole: int) -> float:
        return min(1.0, self.keep / max(whole, 1)) if isinstance(self.keep, int) else self.keep

    def _scores(self, view: LayerView) -> Tensor:
        """The raters' attention, mean over heads and raters, [B, S]."""
        count = int(view.raters.sum(1).max())
        rated, columns = view.raters.int().sort(dim=1, descending=True, stable=True)
        columns, rated = columns[:, :count], rated[:, :count].bool()
        keys = torch.arange(view.visual.shape[1], device=columns.device)
        visible = view.present[:, None] & (keys <= columns[..., None]) | ~rated[..., None]  # a row without keys is NaN
        rows = attention_rows(view.queries(columns), view.keys(), visible)  # [B, H, R, S]
        if self.version == 2:
            rows = rows / _profile(view, columns)
        rows = rows * rated[:, None, :, None]
        if self.version == 2:
            seen = (rows * view.visual[:, None, None]).sum((2, 3))
            best = seen.topk(max(1, round(HEADS * rows.shape[1])), dim=1).indices
            rows = rows.gather(1, best[..., None, None].expand(-1, -1, *rows.shape[2:]))
        return rows.mean(1).sum(1) / rated.sum(1, keepdim=True)


def _profile(view: LayerView, columns: Tensor) -> Tensor:
    """What the rotation of positions alone makes of queries and keys that are all ones: [B, 1, R, S]."""
    width = view.rotary[0].shape[-1]
    ones = view.states.new_ones(len(columns), 1, view.states.shape[1], width, dtype=torch.float32)
    keys = view.rotate(ones)
    queries = view.rotate(ones[:, :, : columns.shape[1]], columns)
    return (queries @ keys.transpose(2, 3)) / width**0.5
