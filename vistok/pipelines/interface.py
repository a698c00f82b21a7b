"""What a pipeline is asked for, and what it returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vistok.errors import VistokError

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.samplers import Stats


@dataclass(frozen=True)
class Sample:
    """One image of a job.

    Attributes:
        index: its number in the job; its random numbers follow from the seed and this number alone.
        condition: the prompt or the class number that it was asked for.
    """

    index: int
    condition: str | int


@dataclass
class Output:
    """What a pipeline returns.

    Attributes:
        images: PIL images, in the order of the samples; none without a decoder. An array or a tensor where the call
            asked for one.
        tokens: their codes, int64 [N, n], or continuous tokens [N, n, D]; without a decoder as grids [N, h, w].
        stats: steps, target forwards, accepted lengths and seconds of drawing the tokens.
    """

    images: list[Image]
    tokens: Tensor
    stats: Stats


def expand(conditions: Sequence[str | int], n: int) -> list[Sample]:
    """Returns ``n`` samples of each condition, numbered in order.

    Raises:
        VistokError: ``n`` is below 1.
    """
    if n < 1:
        raise VistokError(f"the number of images must be at least 1, got {n}.")
    return [Sample(i * n + j, condition) for i, condition in enumerate(conditions) for j in range(n)]
