"""What a compressed call did."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from vistok.models.families.tokens import Canvas


@dataclass
class Report:
    """What the last call did; empty where it had no pictures.

    Attributes:
        before: visual tokens of each picture without compression.
        after: with it; for methods inside the language model, of each prompt from their last layer on.
        kept: which tokens of each picture stayed (see ``Packed.index``); inside the language model, which columns of
            each prompt.
        layouts: grid of tokens of a view and layout of the crops, of each picture; none inside the language model.
        visual: visual tokens of each prompt that stayed.
        lengths: tokens of each prompt in each layer of the language model, ``[prompts][layers]``.
        family: ``model_type`` of the model.
    """

    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)
    kept: list[Tensor] = field(default_factory=list)
    layouts: list[tuple[tuple[int, int], Canvas | None]] = field(default_factory=list)
    visual: list[int] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    family: str = ""
