"""What a run of a continuous sampler did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vistok.samplers.stats import Stats

SUMMED = (
    "draft_forwards",
    "seconds",
    "batches",
    "target_prefixes",
    "target_calls",
    "target_rows",
    "draft_calls",
    "draft_rows",
    "rolled_back",
    "fallbacks",
)


@dataclass
class ContinuousStats(Stats):
    """Steps, calls, acceptance and time of one run.

    ``step_of`` is the target forward that decided each token, from 1: for plain MAR that is its step. 0 was known.

    Attributes:
        accepted_drafts: drafted tokens that were accepted, of each sample, int64 [B].
        target_prefixes: sequences that went through the target's encoder and decoder, guidance branches not counted.
        target_calls, target_rows: calls of the target's head, and the rows of all of them.
        draft_calls, draft_rows: likewise of the draft's.
        rolled_back: drafted tokens that were hidden again because one before them was rejected.
        fallbacks: rejected tokens that found no residual draw and took a plain draw of the target.
    """

    accepted_drafts: Tensor | None = None
    target_prefixes: int = 0
    target_calls: int = 0
    target_rows: int = 0
    draft_calls: int = 0
    draft_rows: int = 0
    rolled_back: int = 0
    fallbacks: int = 0

    in_order: ClassVar[bool] = False

    @property
    def accepted(self) -> Tensor:
        """Draft tokens that were accepted for each sample, int64 [B]."""
        return torch.zeros_like(self.proposed) if self.accepted_drafts is None else self.accepted_drafts

    @property
    def passes(self) -> float:
        """Passes of the network that a sample waited for on average; without drafts an entity may take many."""
        return super().passes if self.draft_calls else self.target_prefixes / len(self.step_of)

    @property
    def mean_accepted_length(self) -> float:
        """Tokens decided by a target forward on average."""
        return int((self.step_of > 0).sum()) / max(1, int(self.forwards.sum()))

    def summary(self) -> dict[str, float]:
        """The figures that the command line prints; calls are of a batch."""
        figures = super().summary()
        figures.pop("acceptance_by_position", None)  # of chains; sets of tokens have no first one
        names = SUMMED[3:] if int(self.proposed.sum()) else SUMMED[3:6]
        return figures | {name: getattr(self, name) / self.batches for name in names}

    @classmethod
    def merged(cls, parts: list[ContinuousStats]) -> ContinuousStats:
        """The statistics of several batches as one; seconds and calls add up."""
        sums = {name: sum(getattr(part, name) for part in parts) for name in SUMMED}
        return cls(
            torch.cat([part.step_of for part in parts]),
            torch.cat([part.proposed for part in parts]),
            accepted_drafts=torch.cat([part.accepted for part in parts]),
            **sums,
        )
