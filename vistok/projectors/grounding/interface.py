"""What grounds a text in a picture: one interface for models that make masks, write boxes, or look twice."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.extension import read_extension
from vistok.models.huggingface import placeholder_in
from vistok.projectors.grounding.points import Points
from vistok.registry import Registry

_HERE = "vistok.projectors.grounding"


@dataclass(frozen=True)
class Region:
    """A place in a picture of height H and width W; what a system does not tell is None.

    Attributes:
        box: (x0, y0, x1, y1) in pixels.
        mask: bool [H, W].
        points: that prompted the mask.
        similarity: the map that the points are made of, in [0, 1], [H, W].
    """

    box: tuple[float, float, float, float] | None = None
    mask: Tensor | None = None
    points: Points | None = None
    similarity: Tensor | None = None


@dataclass(frozen=True)
class Grounding:
    """What a model says to a text, and the regions that it means; none where it points at nothing."""

    answer: str
    regions: tuple[Region, ...] = ()


class Grounder(Protocol):
    """Grounds texts in pictures."""

    def ground(self, picture: Image.Image, text: str) -> Grounding:
        """Finds what a text means in an RGB picture of any size."""


GROUNDERS = Registry(
    "grounding system",
    {
        "pink": f"{_HERE}.pink:Pink",
        "read": f"{_HERE}.read:Read",
        "vpt": f"{_HERE}.second_look:SecondLook",
    },
    "vistok.grounders",
    needs=("from_pretrained", "ground"),
)


def load_grounder(name: str | Path, device: Any = "cpu") -> Grounder:
    """Returns a trained model that grounds texts: embedded, a folder or a hub id.

    Raises:
        VistokError: the name leads nowhere, or to a model of another kind.
    """
    return GROUNDERS[read_extension(name)[0].kind].from_pretrained(name, device)


def check_text(text: str, processor: Any | None = None) -> str:
    """Returns a text without blanks and marks at its end.

    Args:
        text: what to look for.
        processor: of the model, whose placeholders of pictures are no part of a text.

    Raises:
        VistokError: nothing is left, or there is a placeholder in it.
    """
    token = placeholder_in(processor, text)
    if token is not None:
        raise VistokError(f"the text contains '{token}', which stands for a picture: leave it out.")
    if not text.strip(" ?."):
        raise VistokError("there is no text to look for: give a phrase such as 'the red circle'.")
    return text.strip().rstrip("?. ")
