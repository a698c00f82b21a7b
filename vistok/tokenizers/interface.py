"""The one interface of image tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from vistok.data.vtok import bits_per_token
from vistok.errors import VistokError


@dataclass(frozen=True)
class Capabilities:
    """What a tokenizer can do.

    Attributes:
        codebook_size: tokens are in [0, codebook_size); None where they are continuous vectors.
        layout: ``grid`` [B, h, w]; ``sequence`` [B, N], ordered from coarse to fine where prefixes decode; ``scales``
            [B, N], grids of growing side one after another.
        multiple: the sides of pictures are multiples of this.
        image_size: the one side that pictures must have, or None.
        lengths: how many first tokens can be decoded; empty where only all of a picture's tokens can.
        codebooks: names of the codes that one index selects.
        stochastic_decode: decoding draws noise.
    """

    codebook_size: int | None
    layout: Literal["grid", "sequence", "scales"]
    multiple: int
    image_size: int | None = None
    lengths: Sequence[int] = ()
    codebooks: tuple[str, ...] = ("pixel",)
    stochastic_decode: bool = False

    @property
    def variable_length(self) -> bool:
        """Whether a picture can be decoded from fewer than all of its tokens."""
        return len(self.lengths) > 1

    @property
    def bits_per_token(self) -> int:
        """Bits that hold one token: ceil(log2 K).

        Raises:
            VistokError: tokens are continuous.
        """
        if self.codebook_size is None:
            raise VistokError("this tokenizer's tokens are continuous vectors without a codebook: they have no bits.")
        return bits_per_token(self.codebook_size)

    def check_images(self, images: Tensor) -> None:
        """Raise VistokError unless pictures [B, 3, H, W] have sides that the tokenizer takes."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise VistokError(f"a tokenizer takes pictures [B, 3, H, W] in [-1, 1], got {list(images.shape)}.")
        height, width = images.shape[-2:]
        if self.image_size is not None and (height, width) != (self.image_size, self.image_size):
            raise VistokError(
                f"this tokenizer takes pictures of {self.image_size}x{self.image_size} pixels, got {height}x{width}: "
                "resize or crop them."
            )
        if height % self.multiple or width % self.multiple:
            raise VistokError(
                f"this tokenizer takes pictures whose sides are multiples of {self.multiple}, "
                f"got {height}x{width}: resize or crop them."
            )

    def check_length(self, length: int | Tensor, available: int) -> None:
        """Raise VistokError unless the first ``length`` of ``available`` tokens (of each row) can be decoded."""
        for each in length.unique().tolist() if isinstance(length, Tensor) else (length,):
            self._check_length(each, available)

    def _check_length(self, length: int, available: int) -> None:
        if length > available:
            raise VistokError(f"cannot decode {length} tokens of a picture that has {available}.")
        if length in self.lengths or (not self.lengths and length == available):
            return
        if not self.variable_length:
            whole = self.lengths[0] if self.lengths else available
            raise VistokError(f"this tokenizer decodes all {whole} tokens of a picture and no fewer, got {length}.")
        known = ", ".join(map(str, self.lengths))
        if isinstance(self.lengths, range):
            known = f"{self.lengths.start} to {self.lengths[-1]}"
        raise VistokError(f"this tokenizer decodes {known} tokens, got {length}.")


class Tokenizer(Protocol):
    """Pictures [B, 3, H, W] in [-1, 1] <-> tokens."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Pictures to tokens, int64 in the layout that ``capabilities`` states."""
        ...

    def decode(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Tokens to pictures, nominally in [-1, 1] (not clamped).

        Args:
            tokens: as ``encode`` gives them.
            length: how many first tokens to decode; an int64 tensor [B] gives every row its own number.
        """
        ...
