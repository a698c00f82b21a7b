"""What a compressor of visual tokens is: one that thins pictures before the language model, or one that works inside.

A :class:`Compressor` looks at one picture at a time, so pictures of a batch cannot mix. A :class:`LayerCompressor`
drops tokens between two layers of the language model.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

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
    "check_weights",
    "everything",
    "share_of",
    "top_tokens",
]


class Compressor(ABC):
    """Base of all compressors: subclass it, name it, and write :meth:`select`.

    Attributes:
        name: how the command line calls it.
        trained: whether it has weights of its own, which a name and a share cannot give.
        temporal: whether it compares the frames of a video, and has nothing to say about a picture.
        tells_places: whether the tokens that it keeps have places in the picture, which an overlay shows.
        newlines: which row ends of a picture in crops stay: of rows with a survivor, all, or none.
    """

    name: ClassVar[str] = ""
    trained: ClassVar[bool] = False
    temporal: ClassVar[bool] = False
    tells_places: ClassVar[bool] = True
    newlines: ClassVar[Literal["rows", "all", "none"]] = "rows"

    def needs(self, layers: int) -> Needs:
        """Returns what :meth:`select` reads of a vision tower with this many layers beyond its output."""
        return Needs()

    @abstractmethod
    def select(self, image: ImageTokens) -> list[Kept] | Tensor:
        """Returns the tokens to keep of each view, or finished features [n, D] that go to the language model as they
        are.
        """

    def select_frames(self, frames: list[ImageTokens]) -> list[list[Kept] | Tensor]:
        """Returns the tokens to keep of each frame of a video; each frame as a picture, unless a method looks along
        time.
        """
        return [self.select(frame) for frame in frames]


class LayerCompressor:
    """Base of compressors that drop visual tokens inside the language model.

    Attributes:
        name: how the command line calls it.
        trained, temporal: as of ``Compressor``.
        tells_places: as of ``Compressor``; what is dropped within the model is not told.
        drops: whether tokens that are dropped have no logits in the end.
    """

    name: ClassVar[str] = ""
    trained: ClassVar[bool] = False
    temporal: ClassVar[bool] = False
    tells_places: ClassVar[bool] = False
    drops: ClassVar[bool] = True

    def layers(self, total: int, earliest: int) -> tuple[int, ...]:
        """Returns the layers from which on fewer tokens are seen, ascending.

        Args:
            total: number of layers of the language model.
            earliest: the first that may see fewer; 1 but in models that add to their tokens in their first layers.

        Raises:
            VistokError: the model has no such layers.
        """
        raise NotImplementedError

    def raters(self, states: Tensor, visual: Tensor, present: Tensor) -> Tensor | None:
        """Returns which text tokens rank the visual ones, bool [B, S]; None where a method has no such choice.

        Args:
            states: what enters the language model, [B, S, D].
            visual, present: as of LayerView, of the whole prompt.
        """
        return None

    def select(self, view: LayerView) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the visual tokens that the layer and those behind it still see, bool [B, S].

        With them, a method that merges tokens gives the states that go on, [B, S, D].
        """
        raise NotImplementedError


def share_of(keep: int | float, visual: int) -> int:
    """Returns how many of a prompt's visual tokens ``keep`` is, see ``check_keep``: from one to all of them."""
    return min(visual, keep if isinstance(keep, int) else max(1, round(keep * visual)))


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
        following: the layer that will see fewer.
        later: how many of the method's layers are still to come.
        whole: how many visual tokens each prompt had.
        raters: text tokens that rank, bool [B, S]; None where a method chooses none.
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
    following: Any
    later: int
    whole: list[int]
    raters: Tensor | None = None

    def ahead(self) -> LayerView:
        """Returns the same view with the attention of the layer that will see fewer, as it would read these states."""
        return replace(self, attention=self.following.self_attn, normed=self.following.input_layernorm(self.states))

    def keys(self) -> Tensor:
        """Returns the rotated keys of the layer before, [B, Hkv, S, d]."""
        return self._rotated("k", self.normed, self.rotary)

    def last_query(self) -> Tensor:
        """Returns the rotated query of each prompt's last token in the layer before, [B, H, d]."""
        return self.queries(self.last[:, None])[:, :, 0]

    def queries(self, columns: Tensor) -> Tensor:
        """Returns the rotated queries of some tokens int64 [B, R] in the layer before, [B, H, R, d]."""
        rows = torch.arange(len(columns), device=columns.device)[:, None]
        return self._rotated("q", self.normed[rows, columns], tuple(t[rows, columns] for t in self.rotary))

    def rotate(self, x: Tensor, columns: Tensor | None = None) -> Tensor:
        """Vectors [B, H, R, d] as the attention of the layer before rotates those of tokens [B, R], or of all."""
        rows = torch.arange(len(x), device=x.device)[:, None]
        rotary = self.rotary if columns is None else tuple(t[rows, columns] for t in self.rotary)
        return self._turned(x, rotary)

    def _rotated(self, name: str, x: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        attention = self.attention
        y = getattr(attention, f"{name}_proj")(x).unflatten(-1, (-1, attention.head_dim))
        if hasattr(attention, f"{name}_norm"):
            y = getattr(attention, f"{name}_norm")(y)
        return self._turned(y.transpose(1, 2), rotary)

    def _turned(self, y: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        rotate = sys.modules[type(self.attention).__module__].apply_rotary_pos_emb  # layouts differ between families
        return rotate(y, y, *rotary)[0]


def check_keep(keep: int | float) -> int | float:
    """Returns ``keep`` if it is a number of tokens of a view (int >= 1) or a share of them (float in (0, 1]).

    Raises:
        VistokError: it is neither.
    """
    count = isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1
    share = isinstance(keep, float) and 0.0 < keep <= 1.0
    if not (count or share):
        raise VistokError(f"keep is {keep!r}: give a number of tokens from 1, or a share such as 0.25 up to 1.0.")
    return keep


def check_weights(name: str, weights: nn.Module, states: Tensor) -> None:
    """Refuses weights of a trained compressor that lie elsewhere, or have another precision, than the states they read.

    Raises:
        VistokError: they do, and no autocast settles the precision.
    """
    own = next(weights.parameters())
    same = own.dtype == states.dtype or torch.is_autocast_enabled(states.device.type)
    if own.device != states.device or not same:
        raise VistokError(
            f"the weights of {name} are {own.dtype} on {own.device}, and what they read is {states.dtype} on "
            f"{states.device}: move them with .to(model.device, model.dtype)."
        )


def budget(keep: int | float, valid: Tensor) -> list[int]:
    """Returns how many tokens to keep of each view.

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
    """Returns the indices of the best valid tokens of each view, ascending.

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
    """Returns all tokens that show picture: what is kept without compression."""
    return [Kept(row.nonzero().squeeze(1)) for row in image.valid]
