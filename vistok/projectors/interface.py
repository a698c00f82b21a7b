"""What a compressor of visual tokens is: one that thins pictures before the language model, or one that works inside.

A :class:`Compressor` looks at one picture at a time, so pictures of a batch cannot mix. A :class:`LayerCompressor`
drops tokens between two layers of the language model.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.families.tokens import LEADING, TRAILING, Canvas, ImageTokens, Kept, Needs

__all__ = [
    "LEADING",
    "TRAILING",
    "Canvas",
    "Compressor",
    "ImageTokens",
    "Kept",
    "LayerCompressor",
    "LayerView",
    "Needs",
    "budget",
    "check_keep",
    "everything",
    "top_tokens",
]


class Compressor:
    """Base of all compressors: subclass it, name it, and write :meth:`select`.

    Attributes:
        name: how the command line calls it.
        trained: whether it has weights of its own, which a name and a share cannot give.
        newlines: which row ends of a picture in crops stay: of rows with a survivor, all, or none.
    """

    name: ClassVar[str] = ""
    trained: ClassVar[bool] = False
    newlines: ClassVar[Literal["rows", "all", "none"]] = "rows"

    def needs(self, layers: int) -> Needs:
        """What :meth:`select` reads of a vision tower with this many layers beyond its output."""
        return Needs()

    def select(self, image: ImageTokens) -> list[Kept] | Tensor:
        """The tokens to keep of each view, or finished features [n, D] that go to the language model as they are."""
        raise NotImplementedError


class LayerCompressor:
    """Base of compressors that drop visual tokens inside the language model.

    Attributes:
        name: how the command line calls it.
    """

    name: ClassVar[str] = ""
    trained: ClassVar[bool] = False

    def layers(self, total: int, earliest: int) -> tuple[int, ...]:
        """The layers from which on fewer tokens are seen, ascending.

        Args:
            total: number of layers of the language model.
            earliest: the first that may see fewer; 1 but in models that add to their tokens in their first layers.

        Raises:
            VistokError: the model has no such layers.
        """
        raise NotImplementedError

    def select(self, view: LayerView) -> Tensor:
        """The visual tokens that the layer and those behind it still see, bool [B, S]."""
        raise NotImplementedError


@dataclass
class LayerView:
    """What a :class:`LayerCompressor` sees of the prompts at a layer.

    Attributes:
        layer: the first that will see fewer tokens.
        states: what enters it, [B, S, D].
        visual: visual tokens, bool [B, S].
        present: tokens, not padding, bool [B, S].
        last: column of each prompt's last token, int64 [B].
        attention: the attention module of the layer before.
        normed: what entered that module, [B, S, D].
        rotary: cosines and sines of the positions, [B, S, d].
        norm: the language model's last norm.
    """

    layer: int
    states: Tensor
    visual: Tensor
    present: Tensor
    last: Tensor
    attention: nn.Module
    normed: Tensor
    rotary: tuple[Tensor, Tensor]
    norm: nn.Module

    def keys(self) -> Tensor:
        """Rotated keys of the layer before, [B, Hkv, S, d]."""
        return self._rotated("k", self.normed, self.rotary)

    def last_query(self) -> Tensor:
        """Rotated query of each prompt's last token in the layer before, [B, H, d]."""
        rows = torch.arange(len(self.last), device=self.last.device)
        rotary = tuple(t[rows, self.last][:, None] for t in self.rotary)
        return self._rotated("q", self.normed[rows, self.last][:, None], rotary)[:, :, 0]

    def _rotated(self, name: str, x: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        attention = self.attention
        y = getattr(attention, f"{name}_proj")(x).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, f"{name}_norm"):
            y = getattr(attention, f"{name}_norm")(y)
        y = y.transpose(1, 2)
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb  # layouts differ between families
        return rotate(y, y, *rotary)[0]


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
