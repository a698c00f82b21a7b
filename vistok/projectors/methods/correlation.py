"""Token-level correlation-guided compression for documents, after arXiv 2407.14439. No training.

The paper's code was never released, and its thresholds and layers cannot be checked; what follows is its idea with our
own defaults, and reproduces no published figure. A crop of a document is mostly blank paper: patches with many
near-duplicates by key are redundant, and the share that is not sets how many tokens the crop keeps. Which ones: those
that CLS attends to, in a deep layer (what the page is about) and in a shallow one (where the ink is).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import Compressor, ImageTokens, Kept, Needs, top_tokens


def information_density(keys: Tensor, valid: Tensor, similarity: float, duplicates: int) -> Tensor:
    """Share of tokens that are not redundant.

    Args:
        keys: [V, N, C].
        valid: bool [V, N].
        similarity: cosine from which two tokens count as alike.
        duplicates: tokens with more than this many others alike are redundant.

    Returns:
        [V], in 0..1.
    """
    unit = F.normalize(keys.float(), dim=-1) * valid[..., None]  # an invalid token is like no other
    alike = (unit @ unit.transpose(1, 2) > similarity).sum(-1) - 1  # not counting itself
    redundant = (alike > duplicates) & valid
    return 1 - redundant.sum(1) / valid.sum(1).clamp(min=1)


class CorrelationGuided(Compressor):
    """Keep as many tokens as a crop has information, chosen by deep and shallow CLS attention.

    Args:
        similarity: cosine of keys from which two patches count as alike.
        duplicates: a patch with more near-duplicates than this is redundant.
        least: share that even a blank crop keeps.
        shallow: layer of the local scores; a third of the tower if None.
    """

    name = "correlation"

    def __init__(
        self, similarity: float = 0.9, duplicates: int = 8, least: float = 0.05, shallow: int | None = None
    ) -> None:
        if not (0.0 < similarity <= 1.0 and 0.0 < least <= 1.0):
            raise VistokError(f"similarity {similarity} and least {least} must lie between 0 and 1.")
        self.similarity = similarity
        self.duplicates = duplicates
        self.least = least
        self.shallow = shallow

    def needs(self, layers: int) -> Needs:
        return Needs(attention=(self._shallow(layers), layers - 2))

    def select(self, image: ImageTokens) -> list[Kept]:
        shallow, deep = (image.attention[layer] for layer in (self._shallow(image.layers), image.layers - 2))
        local, glob = (F.normalize(layer.saliency().mean(1), p=1, dim=1) for layer in (shallow, deep))
        density = information_density(deep.patch_keys(), image.valid, self.similarity, self.duplicates)
        sizes = image.valid.sum(1)
        counts = torch.minimum((density.clamp(min=self.least) * sizes).round().clamp(min=1), sizes).long().tolist()
        return [Kept(index) for index in top_tokens(local + glob, counts, image.valid)]

    def _shallow(self, layers: int) -> int:
        layer = layers // 3 if self.shallow is None else self.shallow
        if not 0 <= layer < layers:
            raise VistokError(f"layer {layer} of a tower of {layers}: give shallow=0..{layers - 1}.")
        return layer
