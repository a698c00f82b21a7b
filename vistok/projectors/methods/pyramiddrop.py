"""PyramidDrop (arXiv 2410.17247): drop visual tokens in stages, more of them the deeper the layer.

Before each stage the last token's attention, read with the queries and keys that the stage's own first layer makes of
the states, mean over heads, ranks what is left; a fixed share of the prompt's visual tokens goes on. Published are
stages at layers 8, 16 and 24 of 32 with a half, a quarter and an eighth. Differs from the release: tokens keep their
position numbers, as with all methods inside the language model, where the release counts anew; prompts of a batch keep
different counts.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.interface import LayerCompressor, LayerView, check_keep
from vistok.projectors.methods.fastv import best_visual, last_query_attention

STAGES = (1 / 4, 1 / 2, 3 / 4)  # of the depth: 8, 16 and 24 of 32


def stages_in(fractions: tuple[float, ...], total: int, earliest: int, name: str) -> tuple[int, ...]:
    """Layers at fractions of a model's depth, ascending; where it is too shallow for all, the last ones fall together.

    Args:
        fractions: ascending.
        total: layers.
        earliest: the first that may be one.
        name: of the method, for the sentence.

    Raises:
        VistokError: no layer may be one.
    """
    if earliest >= total:
        raise VistokError(f"{name} drops tokens from layer {earliest} on, and the model has {total}: choose another.")
    found: list[int] = []
    for fraction in fractions:
        layer = max(round(fraction * total), earliest, *(last + 1 for last in found[-1:]))
        found.append(min(layer, total - 1))
    return tuple(sorted(set(found)))


def check_layers(layers: tuple[int, ...], total: int, earliest: int, name: str) -> tuple[int, ...]:
    """Layers that a user chose, if a model has them.

    Raises:
        VistokError: it has not, or they do not ascend.
    """
    if list(layers) != sorted(set(layers)) or not layers or layers[0] < earliest or layers[-1] >= total:
        raise VistokError(
            f"layers {list(layers)} of {total}: give {name} ascending ones from {earliest} to {total - 1}."
        )
    return layers


class StagedCompressor(LayerCompressor):
    """Base of methods that drop tokens in stages.

    Attributes:
        stages: where they begin, as fractions of the depth, ascending.
        chosen: the first layer of each stage, as a user chose them; None for those of ``stages``.
    """

    stages: ClassVar[tuple[float, ...]]
    chosen: tuple[int, ...] | None

    def layers(self, total: int, earliest: int) -> tuple[int, ...]:
        if self.chosen is not None:
            return check_layers(self.chosen, total, earliest, self.name)
        return stages_in(self.stages, total, earliest, self.name)


class PyramidDrop(StagedCompressor):
    """Drops visual tokens inside the language model, in three stages.

    Args:
        keep: visual tokens of a prompt that stay behind the last stage (int), or their share (float); each of the
            stages drops the same proportion, so that 0.125 is the published schedule.
        layers: the first layer of each stage; a quarter, a half and three quarters of the depth if None.
    """

    name = "pyramiddrop"
    stages = STAGES

    def __init__(self, keep: int | float = 0.125, layers: tuple[int, ...] | None = None) -> None:
        self.keep = check_keep(keep)
        self.chosen = None if layers is None else tuple(layers)

    def select(self, view: LayerView) -> Tensor:
        steps = 1 - view.later / len(self.stages if self.chosen is None else self.chosen)
        shares = [
            min(1.0, self.keep / whole) if isinstance(self.keep, int) and whole else self.keep for whole in view.whole
        ]
        counts = [max(1, round(whole * share**steps)) for whole, share in zip(view.whole, shares, strict=True)]
        left = view.visual.sum(1).tolist()
        counts = [min(pair) for pair in zip(counts, left, strict=True)]
        return best_visual(last_query_attention(view.ahead()), view.visual, counts)
