"""Pink (arXiv 2310.00582) at work: a multimodal model that writes boxes as text, reads them, and checks itself.

Boxes are fractions of the whole picture, which is squeezed to a square before the model sees it. The published models
and the small one differ in their words alone (:class:`Wording`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from vistok.data.boxes import AGREES, box_text, check_box, parse_box, self_consistent
from vistok.models.extension import load_extended, word_ids
from vistok.projectors.grounding.interface import Grounding, Region, check_text

CHARACTERS = (*"0123456789", ".", ",", "[", "]")  # words of their own, of which a box is spelt
WHERE = "where"
WORDS = (*CHARACTERS, WHERE)
PROJECTOR = "projector."  # of the tensors of a trained projector


@dataclass(frozen=True)
class Wording:
    """How a model is asked, and how it writes numbers.

    Attributes:
        where, what: prompts that ask for a box and for an expression, with ``{text}`` and ``{box}``.
        decimals: of a coordinate; three as published.
        longest: new tokens of an answer.
    """

    where: str = "USER: <image>\nwhere is {text}? ASSISTANT:"
    what: str = "USER: <image>\nwhat is {box}? ASSISTANT:"
    decimals: int = 3
    longest: int = 48


class Sample(NamedTuple):
    """What bootstrapping keeps: number of the picture, its annotated box in pixels, and the expression for it."""

    picture: int
    box: tuple[float, ...]
    text: str


class Pink:
    """A multimodal model that refers.

    Args:
        model, processor: a LLaVA and its processor.
        wording: see Wording.
    """

    def __init__(self, model: Any, processor: Any, wording: Wording | None = None) -> None:
        self.model, self.processor, self.wording = model, processor, wording or Wording()

    @classmethod
    def from_pretrained(cls, name: str | Path, device: Any = "cpu") -> Pink:
        """Returns a model that the ``pink`` task trained: embedded, a folder or a hub id.

        Raises:
            VistokError: there is none.
        """
        from vistok.models.bottleneck import load_bottlenecks
        from vistok.zoo.checkpoint import load_strict

        model, processor, extension, state = load_extended(name, "pink", device)
        word_ids(processor.tokenizer, WORDS)
        own = {key.removeprefix(PROJECTOR): state.pop(key) for key in list(state) if key.startswith(PROJECTOR)}
        if own:
            load_strict(model.model.multi_modal_projector, own, str(name))
        load_bottlenecks(model.model.language_model, state, str(name))
        model.requires_grad_(False).eval()
        return cls(model, processor, Wording(decimals=extension.options["decimals"]))

    def say(self, picture: Image.Image, prompt: str) -> str:
        """Returns the model's answer to a prompt about a picture, greedily decoded."""
        return self.say_all([picture], [prompt])[0]

    @torch.no_grad()
    def say_all(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> list[str]:
        """Returns answers to prompts about a picture each, in one batch."""
        side = self.processor.image_processor.crop_size["height"]
        squeezed = [picture.resize((side, side), Image.Resampling.BICUBIC) for picture in pictures]
        inputs = self.processor(images=squeezed, text=list(prompts), padding=True, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        said = self.model.generate(**inputs, max_new_tokens=self.wording.longest, do_sample=False)
        return [self._words(row[inputs["input_ids"].shape[1] :]) for row in said]

    def _words(self, tokens: torch.Tensor) -> str:
        """Returns tokens as text, in which the characters of a box are joined, whatever is put between words."""
        names = self.processor.tokenizer.convert_ids_to_tokens(tokens)
        tokenizer = self.processor.tokenizer
        if not set(CHARACTERS) & set(tokenizer.get_added_vocab()):
            return tokenizer.decode(tokens, skip_special_tokens=True).strip()
        end = names.index(tokenizer.eos_token) if tokenizer.eos_token in names else len(names)
        glued = [name if name in CHARACTERS else f" {name} " for name in names[:end]]
        return " ".join("".join(glued).split())

    def ground(self, picture: Image.Image, text: str) -> Grounding:
        """Finds what a text means: one box in pixels, or none where the answer tells none.

        Args:
            picture: RGB of any size.
            text: such as ``the red circle``.

        Raises:
            VistokError: the text is empty or holds a placeholder of a picture.
        """
        answer = self.say(picture, self.wording.where.format(text=check_text(text, self.processor)))
        box = parse_box(answer, picture.size, self.wording.decimals)
        if box is None or box[0] >= box[2] or box[1] >= box[3]:
            return Grounding(answer)
        return Grounding(answer, (Region(box=box),))

    def describe(self, picture: Image.Image, box: Sequence[float]) -> str:
        """Returns an expression for a box in pixels.

        Raises:
            VistokError: the box is empty, or no part of the picture.
        """
        return self.say(picture, self._what(picture, box))

    def _what(self, picture: Image.Image, box: Sequence[float]) -> str:
        check_box(box, picture.size)
        return self.wording.what.format(box=box_text(box, picture.size, self.wording.decimals))


def bootstrap(
    model: Pink,
    pictures: Iterable[tuple[Image.Image, Sequence[Sequence[float]]]],
    threshold: float = AGREES,
    most: int = 15,
    least_area: float = 2000.0,
    check: bool = True,
    batch_size: int = 32,
) -> list[Sample]:
    """Describes every box, finds the description again, and keeps what agrees: self-consistent bootstrapping.

    Args:
        model: describes and finds.
        pictures: each with its annotated boxes in pixels.
        threshold: least overlap of the annotated box and the one that is found again, inclusive.
        most: pictures with more boxes are left out.
        least_area: boxes of less, in pixels, are left out.
        check: False keeps every description, for comparison.
        batch_size: boxes, of one picture or several, that the model is asked about at once.

    Returns:
        The expressions that agree, with the annotated boxes, in the order of these.

    Raises:
        VistokError: a box is empty, or no part of its picture.
    """
    asked = _asked(pictures, most, least_area)
    kept = []
    while rows := list(islice(asked, batch_size)):
        shown = [picture for _, picture, _ in rows]
        texts = model.say_all(shown, [model._what(picture, box) for _, picture, box in rows])
        agrees = _agree(model, shown, [box for *_, box in rows], texts, threshold) if check else [True] * len(rows)
        kept += [
            Sample(number, box, text) for (number, _, box), text, ok in zip(rows, texts, agrees, strict=True) if ok
        ]
    return kept


def _asked(
    pictures: Iterable[tuple[Image.Image, Sequence[Sequence[float]]]], most: int, least_area: float
) -> Iterator[tuple[int, Image.Image, tuple[float, ...]]]:
    """Yields boxes that are described, each with its picture and the number of that."""
    for number, (picture, boxes) in enumerate(pictures):
        for box in boxes:
            check_box(box, picture.size)
        if len(boxes) <= most:
            large = (box for box in boxes if (box[2] - box[0]) * (box[3] - box[1]) >= least_area)
            yield from ((number, picture, tuple(box)) for box in large)


def _agree(
    model: Pink, pictures: list[Image.Image], boxes: list[tuple[float, ...]], texts: list[str], threshold: float
) -> list[bool]:
    """Returns whether each text leads the model back to its box."""
    again = model.say_all(pictures, [model.wording.where.format(text=text) for text in texts])
    found = [
        parse_box(said, picture.size, model.wording.decimals) for said, picture in zip(again, pictures, strict=True)
    ]
    told = torch.tensor([box is not None for box in found])
    pair = (torch.tensor(boxes, dtype=torch.float64), torch.tensor([box or (0.0,) * 4 for box in found]))
    return self_consistent(*pair, told, threshold).tolist()
