"""StreamingLLM's rule (arXiv 2309.17453): the first tokens, which soak up attention, and the last ones are kept.

Differs from the paper: kept keys keep the rotation of their place in the text instead of their place in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.context.interface import at_least
from vistok.context.keeping import Keeper


@dataclass
class StreamingLLM(Keeper):
    """Every token sees the first ``sinks`` tokens and the last ``window`` ones, itself included.

    Args:
        sinks: first tokens.
        window: last tokens.
        chunk: tokens of a prompt that go together.
    """

    sinks: int = 4
    window: int = 1024
    chunk: int = 512

    name = "streaming"

    def __post_init__(self) -> None:
        at_least("sinks", self.sinks, 0)
        at_least("window", self.window, 1)
        at_least("chunk", self.chunk, 1)
        self.reset()

    def rows(self, tokens: int) -> int:
        return min(tokens, self.sinks + self.window)

    def shrink(self, layer: int, k: Tensor, v: Tensor, received: Tensor | None) -> tuple[Tensor, Tensor] | None:
        last = self.window - 1  # beside the token that comes
        if k.shape[2] <= self.sinks + last:
            return None
        gone = k.shape[2] - last
        return tuple(torch.cat([x[:, :, : self.sinks], x[:, :, gone:]], 2) for x in (k, v))

    def visible(self, tokens: int, before: int, new: int) -> Tensor | None:
        if new == 1:
            return None
        row = torch.arange(before + new)
        number = torch.where(row < min(self.sinks, before), row, row + tokens - before)
        own = tokens + torch.arange(new)[:, None]
        return ((number <= own) & ((number > own - self.window) | (number < self.sinks)))[None]
