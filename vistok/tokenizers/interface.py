"""The one interface of image tokenizers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from vistok.data.vtok import bits_per_token
from vistok.errors import VistokError

BEYOND_RANGE = 8.0  # decoded pictures, which are not clamped, stay far below; bytes go far above


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


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
        stochastic_decode: decoding draws noise: ``decode`` takes a ``generator``, one for all rows or a list of one
            each (see ``noise_of``).
        resize: how other pictures are brought to ``image_size``: their middle is cut out, or they are stretched.
    """

    codebook_size: int | None
    layout: Literal["grid", "sequence", "scales"]
    multiple: int
    image_size: int | None = None
    lengths: Sequence[int] = ()
    codebooks: tuple[str, ...] = ("pixel",)
    stochastic_decode: bool = False
    resize: Literal["crop", "stretch"] = "crop"

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
        self.check_discrete()
        assert self.codebook_size is not None
        return bits_per_token(self.codebook_size)

    def check_discrete(self) -> None:
        """Refuse continuous tokens, before what needs a codebook begins.

        Raises:
            VistokError: tokens are continuous.
        """
        if self.codebook_size is None:
            raise VistokError("this tokenizer's tokens are continuous vectors without a codebook: they have no bits.")

    def check_images(self, images: Tensor) -> None:
        """Refuse what is no batch of pictures [B, 3, H, W] in [-1, 1] with sides that the tokenizer takes.

        Raises:
            VistokError: another shape or number format, bytes in place of [-1, 1], or values that are no numbers.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            batch = " (a batch of one has images[None])" if images.ndim == 3 else ""
            raise VistokError(f"a tokenizer takes pictures [B, 3, H, W] in [-1, 1], got {list(images.shape)}{batch}.")
        if not images.is_floating_point():
            raise VistokError(
                f"a tokenizer takes real pixels in [-1, 1], got {_name(images)}: scale bytes by images / 127.5 - 1."
            )
        if not images.is_meta and images.numel():
            largest = float(images.detach().abs().amax())
            if not math.isfinite(largest):
                raise VistokError("the pictures hold values that are not finite numbers: mend what made them.")
            if largest > BEYOND_RANGE:
                raise VistokError(
                    f"a tokenizer takes pixels in [-1, 1], got values up to {largest:.4g}: scale by images / 127.5 - 1."
                )
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

    def check_tokens(self, tokens: Tensor, width: int | None = None) -> None:
        """Refuse what this tokenizer's ``encode`` could not have given.

        Args:
            tokens: as ``decode`` takes them.
            width: of a continuous token, in its own dimension: the second of a grid, the last of a sequence.

        Raises:
            VistokError: another shape or number format, indices outside the codebook, or values that are no numbers.
        """
        layout = {"grid": "[B, h, w]"}.get(self.layout, "[B, N]")
        if not isinstance(tokens, Tensor):
            raise VistokError(f"tokens are a tensor {layout}, got {type(tokens).__name__}.")
        if self.codebook_size is None:
            layout = {"grid": f"[B, {width or 'D'}, h, w]"}.get(self.layout, f"[B, N, {width or 'D'}]")
        axis = 1 if self.layout == "grid" else -1
        fits = tokens.ndim == layout.count(",") + 1
        if self.codebook_size is None and width is not None:
            fits = fits and tokens.shape[axis] == width
        if not fits:
            batch = " (a batch of one has tokens[None])" if tokens.ndim == layout.count(",") else ""
            raise VistokError(f"this tokenizer decodes tokens {layout}, got {list(tokens.shape)}{batch}.")
        if not tokens.numel():
            raise VistokError(f"this tokenizer decodes tokens {layout}, got none: {list(tokens.shape)}.")
        if self.codebook_size is None:
            if not tokens.is_floating_point():
                raise VistokError(f"this tokenizer's tokens are continuous vectors, got {_name(tokens)}.")
            if not tokens.is_meta and not bool(tokens.isfinite().all()):
                raise VistokError("the tokens hold values that are not finite numbers: mend what made them.")
            return
        if tokens.dtype not in (torch.int64, torch.int32):
            raise VistokError(f"tokens are indices, int64 in [0, {self.codebook_size}), got {_name(tokens)}.")
        if tokens.is_meta:
            return
        least, largest = (int(each) for each in tokens.aminmax())
        if least < 0 or largest >= self.codebook_size:
            outside = least if least < 0 else largest
            raise VistokError(
                f"the tokens hold {outside}, but this tokenizer's codebook has the indices 0 to "
                f"{self.codebook_size - 1}: name the tokenizer that made them."
            )

    def check_length(self, length: int | Tensor, available: int) -> None:
        """Raise VistokError unless the first ``length`` of ``available`` tokens (of each row) can be decoded."""
        if isinstance(length, Tensor) and (length.ndim != 1 or length.is_floating_point()):
            raise VistokError(f"numbers of tokens are int64 [B], got {_name(length)} {list(length.shape)}.")
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
        """Pictures, of any real number format, to tokens, int64 in the layout that ``capabilities`` states."""
        ...

    def decode(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Tokens to pictures, nominally in [-1, 1] (not clamped).

        Args:
            tokens: as ``encode`` gives them.
            length: how many first tokens to decode; an int64 tensor [B] gives every row its own number.
        """
        ...


def noise_of(tokenizer: Tokenizer, seeds: Iterable[int]) -> dict[str, Any]:
    """Returns the arguments of ``decode`` that give every row the noise of its own seed, whatever rows are beside it.

    Args:
        tokenizer: decodes; where it draws no noise, there are no arguments.
        seeds: one for each row, as of ``derive_seed``.
    """
    if not tokenizer.capabilities.stochastic_decode:
        return {}
    return {"generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
