"""What the layers of a decoder have dropped from a cache of keys and values: told by whoever prunes, kept on the cache.

Layers behind the first that prunes hold fewer rows of the prompt than those before. Whoever reads the cache, the pruner
itself at the next step or a sampler that copies the rows, finds here which columns of the prompt they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

PRUNED = "_vistok_pruned"  # on a cache


class Stage(NamedTuple):
    """Columns of the prompts that the layers of a stage see, int64 [B, S'], and which are tokens, bool [B, S']."""

    columns: Tensor
    present: Tensor


@dataclass
class Pruned:
    """What was kept of a batch of prompts.

    Attributes:
        visual, present: of the whole prompts, bool [B, S].
        prompt: number of columns that are prompt; candidates of assisted decoding follow them.
        stages: by first layer, ascending.
        ragged: first layers of the stages in which rows are padded.
    """

    visual: Tensor
    present: Tensor
    prompt: int
    stages: dict[int, Stage] = field(default_factory=dict)
    ragged: set[int] = field(default_factory=set)

    def add(self, layer: int, stage: Stage, padded: bool) -> None:
        """A stage begins at a layer; told with it is whether its rows are padded, which costs no look at a device."""
        self.stages[layer] = stage
        if padded:
            self.ragged.add(layer)

    def padded(self, layer: int) -> bool:
        """Whether rows of what a layer sees are padded."""
        return next((first in self.ragged for first in reversed(self.stages) if first <= layer), False)

    def stage(self, layer: int) -> Stage | None:
        """What a layer sees; None for everything."""
        return next((stage for first, stage in reversed(self.stages.items()) if first <= layer), None)

    def lengths(self, layers: int) -> list[list[int]]:
        """Tokens of each prompt in each layer, [B][layers]."""
        stages = [self.stage(layer) for layer in range(layers)]
        return torch.stack([(self if s is None else s).present.sum(1) for s in stages], 1).tolist()

    def cut(self, columns: int) -> None:
        """The last columns, candidates behind a prompt that were not accepted, have left the cache."""
        self.visual, self.present = self.visual[:, :-columns], self.present[:, :-columns]
        self.stages = {first: Stage(*(t[:, :-columns] for t in stage)) for first, stage in self.stages.items()}

    def last(self) -> Tensor:
        """Column of each prompt's last token, int64 [B]."""
        present = self.present[:, : self.prompt]
        return present.shape[1] - 1 - present.flip(1).int().argmax(1)


def pruned_cache(cache: Any) -> Pruned | None:
    """What was dropped from a cache."""
    return getattr(cache, PRUNED, None)
