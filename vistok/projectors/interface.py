"""What a compressor sees of one picture, and what it hands back.

A compressor looks at one picture at a time, so pictures of a batch cannot mix. A picture is one or several views: one
for LLaVA-1.5, a thumbnail followed by crops for LLaVA-NeXT. A patch of view v is named by its raster index 0..N-1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.attention import LayerAttention

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
    _features: Tensor | None = None

    @property
    def features(self) -> Tensor:
        """All tokens as the language model would get them, [V, N, D]; projected once."""
        if self._features is None:
            self._features = self.project(self.hidden)
        return self._features

    def project_kept(self, kept: list[Kept]) -> Tensor:
        """Projected tokens of all views in the order of ``kept``, [n, D]; nothing is projected twice."""
        if self._features is not None and all(view.tokens is None for view in kept):
            return torch.cat([row[view.index] for row, view in zip(self._features, kept, strict=True)])
        tokens = [
            row[view.index] if view.tokens is None else view.tokens for row, view in zip(self.hidden, kept, strict=True)
        ]
        return self.project(torch.cat(tokens)[None])[0]


class Kept(NamedTuple):
    """The tokens kept of one view, in any order.

    Attributes:
        index: the patch that each token stands for, int64 [n]; ``LEADING`` or ``TRAILING`` for none in particular.
        tokens: what the projector gets for them, [n, C]; ``hidden[index]`` if None.
    """

    index: Tensor
    tokens: Tensor | None = None


class Compressor:
    """Base of all compressors: subclass it, name it, and write :meth:`select`.

    Attributes:
        name: how the command line calls it.
        newlines: which row ends of a picture in crops stay: of rows with a survivor, all, or none.
    """

    name: ClassVar[str] = ""
    newlines: ClassVar[Literal["rows", "all", "none"]] = "rows"

    def needs(self, layers: int) -> Needs:
        """What :meth:`select` reads of a vision tower with this many layers beyond its output."""
        return Needs()

    def select(self, image: ImageTokens) -> list[Kept] | Tensor:
        """The tokens to keep of each view, or finished features [n, D] that go to the language model as they are."""
        raise NotImplementedError


def check_keep(keep: int | float) -> int | float:
    """``keep`` if it is a number of tokens of a view (int >= 1) or a share of them (float in (0, 1]).

    Raises:
        VistokError: it is neither.
    """
    count = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1
    share = isinstance(keep, float) and 0.0 < keep <= 1.0
    if not (count or share):
        raise VistokError(f"keep is {keep!r}: give a number of tokens from 1, or a share such as 0.25 up to 1.0.")
    return keep


def budget(keep: int | float, valid: Tensor) -> list[int]:
    """How many tokens to keep of each view.

    Args:
        keep: number of tokens of a view, or share of the tokens that show picture; at least one stays.
        valid: bool [V, N].

    Returns:
        Counts by view, never more than the view has.

    Raises:
        VistokError: more tokens asked for than a view has patches.
    """
    if isinstance(keep, int) and keep > valid.shape[1]:
        raise VistokError(f"cannot keep {keep} tokens of {valid.shape[1]}: give at most {valid.shape[1]}.")
    counts = valid.sum(1).tolist()
    if isinstance(keep, int):
        return [min(keep, n) for n in counts]
    return [min(max(1, round(keep * n)), n) for n in counts]


def top_tokens(scores: Tensor, counts: list[int], valid: Tensor) -> list[Tensor]:
    """Indices of the best valid tokens of each view, ascending.

    Args:
        scores: [V, N].
        counts: how many of each view.
        valid: bool [V, N].

    Returns:
        int64 [counts[v]] for each view.
    """
    order = scores.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    return [row[:n].sort().values for row, n in zip(order, counts, strict=True)]


def everything(image: ImageTokens) -> list[Kept]:
    """All tokens that show picture: what no compression keeps."""
    return [Kept(row.nonzero().squeeze(1)) for row in image.valid]
