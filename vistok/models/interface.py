"""What a generator of images is to the rest of the package, and how a family of generators registers itself.

A family is one object, named in the table of ``vistok.models.generators``: how its generators load, and what fits
them. Samplers see a :class:`Generator`; those that run a particular network reach it by ``vistok.samplers.targets``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from vistok.errors import VistokError

if TYPE_CHECKING:
    from typing_extensions import Self

    from vistok.tokenizers.interface import Tokenizer
    from vistok.zoo import ModelCard


@dataclass(frozen=True)
class TokenSpec:
    """The tokens that a generator draws for an image.

    Attributes:
        kind: ``codes``, integers below ``size``, or ``vectors`` of width ``size``.
        size: number of codes V, or width D.
        length: tokens of an image.
        layout: ``grid`` in raster order, or ``sequence``, ordered from coarse to fine.
        patch: positions of the tokenizer's grid along a side of a token.
        columns: tokens of a row of a grid that is no square; None of a square.
        special: how many of the ``size`` are no codes but forced by a layout, such as line ends; they come last.
    """

    kind: Literal["codes", "vectors"]
    size: int
    length: int
    layout: Literal["grid", "sequence"] = "grid"
    patch: int = 1
    columns: int | None = None
    special: int = 0

    @property
    def line(self) -> int:
        """Tokens of a row; a sequence is one row."""
        if self.columns is not None:
            return self.columns
        return self.length if self.layout == "sequence" else round(self.length**0.5)


@dataclass(frozen=True)
class Control:
    """A picture that images follow in space, such as edges.

    Attributes:
        picture: [1, 3, H, W] in [-1, 1]; both sides are whole numbers of tokens.
        kind: what it shows, e.g. ``canny`` or ``depth``.
        strength: how much it counts; 1 as in training.
    """

    picture: Tensor
    kind: str
    strength: float = 1.0


@dataclass(frozen=True)
class Known:
    """Tokens of an image that stay as they are, while the others are drawn around them.

    Attributes:
        tokens: of the whole image as its generator draws them, [L] or [L, D].
        mask: True where a token stays, bool [L].
    """

    tokens: Tensor
    mask: Tensor

    @property
    def hidden(self) -> int:
        """How many tokens are drawn."""
        return int((~self.mask).sum())


@dataclass(frozen=True)
class Condition:
    """What a batch of images is asked to show.

    Attributes:
        values: classes int64 [B], or text features [B, T, D].
        mask: which text features are real, [B, T]; all if None.
        control: pictures that all images of the batch follow; their effects add up.
        known: what all images of the batch have in common already.
        negative: what they are guided away from, in the place of nothing asked for: likewise B values.
    """

    values: Tensor
    mask: Tensor | None = None
    control: tuple[Control, ...] = ()
    known: Known | None = None
    negative: Condition | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> Tensor:
        """Text features as their mean over those that are real, [B, D]; classes as they are."""
        if self.values.ndim < 3:
            return self.values
        if self.mask is None:
            return self.values.mean(1)
        weight = self.mask.to(self.values)[..., None]
        return (self.values * weight).sum(1) / weight.sum(1).clamp(min=1)


class TextReader(Protocol):
    """Reads the prompts of a generator that is conditional on text: an ``nn.Module``.

    It returns features [B, T, D] and their mask [B, T]; where a language model draws, its prompt in tokens.
    """

    @property
    def known_words(self) -> list[str] | None:
        """The words of a word-level tokenizer, sorted; None for tokenizers that can spell any word."""
        ...

    def unknown_words(self, captions: Sequence[str], /) -> list[str]:
        """Returns the distinct words that a word-level tokenizer does not know, in order."""
        ...

    def __call__(self, captions: Sequence[str], /) -> Any:
        """Reads captions."""


class Generator(Protocol):
    """A network that draws the tokens of images: an ``nn.Module`` with these names.

    Attributes:
        family: name of its family.
        tokens: what it draws.
        conditional_on: ``class`` or ``text``.
        classes: how many classes it knows; 0 where it is conditional on text.
        text_width: width of the text features that it reads; 0 where it is conditional on classes.
    """

    family: ClassVar[str]
    tokens: TokenSpec
    conditional_on: Literal["class", "text"]
    classes: int
    text_width: int

    def parameters(self) -> Iterator[nn.Parameter]:
        """Returns its weights."""
        ...

    def image_tokens(self, drawn: Tensor) -> Tensor:
        """Returns the drawn tokens of B images, [B, n] or [B, n, D], as the tokenizer's ``decode`` takes them."""


class AutoregressiveGenerator(Generator, Protocol):
    """A generator that draws one token behind the other; ``vistok.samplers.targets`` has a target for its family.

    Attributes:
        width: width of the features that its output layer reads.
        prefix: conditioning tokens before the image's.
    """

    width: int
    prefix: int

    def null_condition(self, batch: int) -> Tensor:
        """Returns the values of the condition "nothing asked for", for ``batch`` images."""

    def head(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., V] of features [..., width]."""


class FillingGenerator(Generator, Protocol):
    """A generator that draws tokens in any places, so that others may be known."""

    def own_tokens(self, tokens: Tensor) -> Tensor:
        """Returns tokens of B images as the tokenizer encodes them as this generator draws them: what ``image_tokens``
        undoes."""


class ControlledGenerator(Generator, Protocol):
    """A generator that follows control pictures.

    Attributes:
        controls: kinds of pictures that its weights know.
        multiple: pixels of a token along a side.
    """

    controls: tuple[str, ...]
    multiple: int

    def resized(self, height: int, width: int) -> Self:
        """Returns the same network, sharing its weights, that draws images of this size in pixels.

        Raises:
            VistokError: it cannot.
        """


class MaskedGenerator(Generator, Protocol):
    """A generator that predicts hidden codes, given visible ones in any places.

    Attributes:
        mask_id: the id of a hidden code.
    """

    mask_id: int

    def null_condition(self, batch: int) -> Tensor:
        """Returns the values of the condition "nothing asked for", for ``batch`` images."""

    def predict(self, codes: Tensor, values: Tensor, state: Any | None = None) -> tuple[Tensor, Any | None]:
        """Returns logits [B, L, V] of all codes, and what the next step of the same images is told of this one.

        Args:
            codes: int64 [B, L], as many hidden in each row.
            values: classes [B], or mean text features [B, D].
            state: what the step before left; codes that were visible then are the same now. None begins anew.
        """


@dataclass(frozen=True)
class LoadRequest:
    """What a user asked a family to load.

    Attributes:
        card: of the model whose name was given.
        checkpoint: weights of the generator: a path or a hub id; the card's own if None.
        tokenizer: weights of the image tokenizer, likewise; the card's own if None.
        size: side of the images in pixels, for files that do not tell.
        preset: shape of a file whose name is not a published one.
        tokens: draw only so many first tokens.
    """

    card: ModelCard
    checkpoint: str | Path | None = None
    tokenizer: str | Path | None = None
    size: int | None = None
    preset: str | None = None
    tokens: int | None = None

    @property
    def source(self) -> str | Path:
        """Where the generator's weights come from."""
        return self.card.name if self.checkpoint is None else self.checkpoint

    def wrong_size(self, side: int) -> VistokError:
        """The error for another ``size`` than the side of a model's images."""
        return VistokError(f"'{self.source}' draws {side}x{side} images: leave --size out, or give {side}.")

    @property
    def tokenizer_source(self) -> str | Path:
        """Where the tokenizer's weights come from.

        Raises:
            VistokError: none was named, and the card names none.
        """
        source = self.card.parts.get("tokenizer") if self.tokenizer is None else self.tokenizer
        if source is None:
            raise VistokError("this model comes without its tokenizer's weights: name them with --tokenizer.")
        if self.tokenizer is None and not self.card.embedded:
            beside = Path(self.card.source) / source  # of a pipeline that was saved as a whole
            if self.card.source and beside.is_dir():
                return beside
        return source


class GeneratorFamily(Protocol):
    """Loads the generators of one family, and says what fits them.

    Attributes:
        name: as cards tell it.
        interface: how its tokens are drawn: ``autoregressive``, by the draft-verify loop, or a name of its own.
            Samplers of the same interface fit.
        plain: name of the sampler that is taken where none is named.
        options: which of ``size``, ``preset``, ``tokens``, ``text_encoder`` and ``compile`` it honours.
    """

    name: str
    interface: str
    plain: str
    options: frozenset[str]

    def load(self, request: LoadRequest) -> tuple[Any, Tokenizer | None]:
        """Returns a :class:`Generator` and its tokenizer, or None where it comes without a decoder; in evaluation mode,
        float32, on the CPU.

        Raises:
            VistokError: weights that do not fit, or an option with an impossible value.
        """
