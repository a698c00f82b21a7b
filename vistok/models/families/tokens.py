"""The visual tokens of a picture, and how much of a vision tower a reader of them asks for.

A picture is one or several views: one for LLaVA-1.5, a thumbnail followed by crops for LLaVA-NeXT. A token of view v is
named by its raster index 0..N-1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from vistok.models.families.attention import LayerAttention

LEADING, TRAILING = -1, -2  # places of tokens that stand for no single patch: before and after all others


class Needs(NamedTuple):
    """Layers of the vision tower that a compressor reads, as :class:`ImageTokens` offers them.

    Attributes:
        attention: layers 0..L-1 whose CLS query and keys are wanted.
        states: indices into the tower's hidden states 0..L, where entry i is the input of layer i.
    """

    attention: tuple[int, ...] = ()
    states: tuple[int, ...] = ()


class Canvas(NamedTuple):
    """Where the crops of a picture lie: rows x cols crops, of whose patches a rectangle shows picture, not padding."""

    rows: int
    cols: int
    top: int
    bottom: int
    left: int
    right: int


@dataclass
class ImageTokens:
    """The visual tokens of one picture before they are thinned.

    Attributes:
        hidden: what the projector would get, [V, N, C], without CLS.
        grid: rows and columns of tokens of a view, N = rows * cols.
        project: the model's projector, [..., C] -> [..., D].
        layers: number of layers L of the vision tower.
        valid: tokens that show picture, not padding, bool [V, N].
        cls: the CLS token at the same layer, [V, 1, C], or None where the projector could not take one.
        canvas: layout of views 1.., which are crops of view 0; None for a single view.
        newline: embedding that ends each row of crops, [D], or None.
        attention: :class:`LayerAttention` by layer, as asked for by ``needs``.
        states: hidden states by index, [V, N, C_tower], as asked for by ``needs``.
        levels: number of further maps that are added to the tokens in later layers of the language model (Qwen3-VL);
            they lie behind the first in the channels of ``hidden``, and are thinned and merged with it.
        text: embeddings of the text of the prompt that the picture stands in, [T, D], where that is known.
    """

    hidden: Tensor
    grid: tuple[int, int]
    project: Callable[[Tensor], Tensor]
    layers: int
    valid: Tensor
    cls: Tensor | None = None
    canvas: Canvas | None = None
    newline: Tensor | None = None
    attention: dict[int, LayerAttention] = field(default_factory=dict)
    states: dict[int, Tensor] = field(default_factory=dict)
    levels: int = 0
    text: Tensor | None = None
    _features: Tensor | None = None

    @property
    def width(self) -> int:
        """Channels of ``hidden`` that are the tokens' own, without further levels."""
        return self.hidden.shape[-1] // (1 + self.levels)

    @property
    def features(self) -> Tensor:
        """All tokens as the language model would get them, [V, N, D]; projected once."""
        if self._features is None:
            self._features = self.project(self.hidden)
        return self._features

    def gather(self, kept: list[Kept]) -> Tensor:
        """Returns the kept tokens of all views, as the projector gets them, [n, C]."""
        views = zip(self.hidden, kept, strict=True)
        return torch.cat([row[view.index] if view.tokens is None else view.tokens for row, view in views])

    def project_kept(self, kept: list[Kept]) -> Tensor:
        """Returns the projected tokens of all views in the order of ``kept``, [n, D]; nothing is projected twice."""
        if self._features is not None and all(view.tokens is None for view in kept):
            return torch.cat([row[view.index] for row, view in zip(self._features, kept, strict=True)])
        return self.project(self.gather(kept)[None])[0]

    def kept_levels(self, kept: list[Kept]) -> list[Tensor]:
        """Returns the further levels of the kept tokens, [n, D] each."""
        return list(self.gather(kept)[:, self.width :].split(self.width, -1)) if self.levels else []


class Kept(NamedTuple):
    """The tokens kept of one view, in any order.

    Attributes:
        index: the patch that each token stands for, int64 [n]; ``LEADING`` or ``TRAILING`` for none in particular.
        tokens: what the projector gets for them, [n, C]; ``hidden[index]`` if None.
    """

    index: Tensor
    tokens: Tensor | None = None
