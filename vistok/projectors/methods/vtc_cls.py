"""VTC-CLS (arXiv 2412.05819): keep the patches that the vision tower's CLS token attends to most. No training.

Scores of several layers are summed: layers start..L-2, the last one excluded. ``start = L-2`` is the single-layer
variant. Differs from the release: any batch, grid and attention implementation, pictures in crops, float32 scores.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import Compressor, ImageTokens, Kept, Needs, budget, check_keep, top_tokens


def ensemble_layers(layers: int, start: int | None = None) -> range:
    """Returns the layers whose CLS rows are summed.

    Args:
        layers: number of layers L of the tower.
        start: first of them, negative from the end as in a slice; two thirds of L (16 of CLIP-L's 24) if None,
            or the last but one where none is left there.

    Raises:
        VistokError: no layer is left.
    """
    start = min(round(layers * 2 / 3), max(layers - 2, 0)) if start is None else start
    chosen = range(layers)[start:-1]
    if not chosen:
        raise VistokError(f"{layers} layers leave none from {start} to the last but one: give start=-2 or earlier.")
    return chosen


def vtc_cls_scores(rows: Tensor) -> Tensor:
    """Returns the score of each patch: the head mean of the CLS rows, summed over layers.

    Args:
        rows: attention of CLS to the patches, [layers, V, H, N].

    Returns:
        [V, N].
    """
    return rows.mean(2).sum(0)


class VtcCls(Compressor):
    """Keeps the patches that CLS attends to most, over an ensemble of layers.

    Args:
        keep: tokens of a view (int), or share of them (float).
        start: first layer of the ensemble; see :func:`ensemble_layers`. -2 uses one layer.
    """

    name = "vtc-cls"

    def __init__(self, keep: int | float = 0.25, start: int | None = None) -> None:
        self.keep = check_keep(keep)
        self.start = start

    def needs(self, layers: int) -> Needs:
        return Needs(attention=tuple(ensemble_layers(layers, self.start)))

    def scores(self, image: ImageTokens) -> Tensor:
        """Returns the score of each patch, [V, N]."""
        layers = ensemble_layers(image.layers, self.start)
        return vtc_cls_scores(torch.stack([image.attention[layer].saliency() for layer in layers]))

    def select(self, image: ImageTokens) -> list[Kept]:
        counts = budget(self.keep, image.valid)
        return [Kept(index) for index in top_tokens(self.scores(image), counts, image.valid)]
