"""A constraint as a logits processor of transformers: a function of the text alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.constraints.interface import Constraint


class Constrained:
    """Leaves only the tokens that a constraint allows.

    A state is looked up by the text behind the prompt, and made from the state one token earlier where it is not known:
    beams, branches and batches of any order share one object.

    Args:
        constraint: what is allowed.
        prompt: columns of the prompts, their padding included.
        ends: tokens that end a text; nothing is asked behind them.
    """

    def __init__(self, constraint: Constraint, prompt: int, ends: tuple[int, ...] = ()):
        self.constraint, self.prompt, self.ends = constraint, prompt, frozenset(ends)
        self._states: dict[tuple[int, ...], Any] = {(): constraint.start()}

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] with minus infinity at what the texts [B, T] do not allow.

        Raises:
            VistokError: the constraint leaves no token behind a text.
        """
        masks = [self._allowed(tuple(row), scores) for row in input_ids[:, self.prompt :].tolist()]
        return scores.masked_fill(~torch.stack(masks), -torch.inf)

    def _allowed(self, text: tuple[int, ...], scores: Tensor) -> Tensor:
        if not self.ends.isdisjoint(text):  # a finished row of a batch
            return torch.ones_like(scores[0], dtype=torch.bool)
        mask = self.constraint.allowed(self._state(text)).to(scores.device)
        if not bool(mask.any()):
            raise VistokError(
                f"{type(self.constraint).__name__} allows no token behind {list(text)}: let it allow the end token."
            )
        return mask

    def _state(self, text: tuple[int, ...]) -> Any:
        known = len(text)
        while text[:known] not in self._states:
            known -= 1
        for size in range(known, len(text)):
            self._states[text[: size + 1]] = self.constraint.advance(self._states[text[:size]], text[size])
        return self._states[text]
