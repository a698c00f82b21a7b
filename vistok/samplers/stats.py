"""What a run of the draft-verify loop did, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor


@dataclass
class Stats:
    """Steps, acceptance and time of one run.

    Everything that counts tokens derives from ``step_of``, so a trace, a summary and a statistic cannot disagree.

    Attributes:
        step_of: which verify step decided each token, 0 for the prefill and behind a sample's end; int64 [B, n] on the
            CPU.
        proposed: draft tokens that were offered for each sample, int64 [B].
        draft_forwards: calls of a draft network.
        seconds: wall time of each sample's batch, prefill included.
    """

    step_of: Tensor
    proposed: Tensor
    draft_forwards: int = 0
    seconds: float = 0.0
    batches: int = field(default=1, repr=False)

    in_order: ClassVar[bool] = True  # tokens are decided one behind the other, so that a step says nothing of a place

    @property
    def tokens(self) -> int:
        """Tokens of the longest sample."""
        return self.step_of.shape[1]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each sample, int64 [B]: the prefill decides one."""
        return 1 + (self.step_of > 0).sum(1)

    @property
    def forwards(self) -> Tensor:
        """Target forwards behind the prefill that each sample needed, int64 [B]."""
        return self.step_of.amax(1)

    @property
    def passes(self) -> float:
        """Passes of the network that a sample waited for on average, guidance not counted twice."""
        return float(self.forwards.double().mean())

    @property
    def accepted(self) -> Tensor:
        """Draft tokens that were accepted for each sample, int64 [B]: every step decides one token more."""
        return self.lengths - 1 - self.forwards

    @property
    def mean_accepted_length(self) -> float:
        """Tokens decided by a verify step on average, the target's own token included; 1 for plain decoding."""
        return int((self.lengths - 1).sum()) / max(1, int(self.forwards.sum()))

    @property
    def acceptance_rate(self) -> float:
        """Accepted over proposed draft tokens."""
        return int(self.accepted.sum()) / max(1, int(self.proposed.sum()))

    def emitted(self, sample: int) -> list[int]:
        """Returns how many tokens each verify step decided for one sample."""
        return torch.bincount(self.step_of[sample])[1:].tolist()

    @property
    def acceptance_by_position(self) -> list[float]:
        """Shares of verify steps that accepted at least 1, 2, ... draft tokens."""
        lengths = torch.cat([torch.bincount(row)[1:] for row in self.step_of])
        longest = int(lengths.max()) if len(lengths) else 1
        return [float((lengths > i + 1).double().mean()) for i in range(longest - 1)]

    def drafted(self, sample: int) -> Tensor:
        """Returns which tokens of one sample were accepted drafts, bool [n]; the others are the target's own."""
        steps = self.step_of[sample]
        behind = torch.cat([steps[1:], steps.new_zeros(1)])
        return (steps > 0) & (steps == behind)

    def step_map(self, sample: int) -> Tensor:
        """Returns how many tokens were decided together with each token, int64 [n]: the map that ``--trace`` paints."""
        steps = self.step_of[sample]
        return torch.bincount(steps)[steps]

    def summary(self) -> dict[str, float | list[float]]:
        """Returns the figures that the command line prints."""
        return {
            "samples": len(self.step_of),
            "tokens": self.tokens,
            "target_forwards": float(self.forwards.double().mean()),
            "mean_accepted_length": self.mean_accepted_length,
            "acceptance_rate": self.acceptance_rate,
            "acceptance_by_position": self.acceptance_by_position,
            "draft_forwards": self.draft_forwards / self.batches,
            "seconds": self.seconds,
        }

    @staticmethod
    def merged(parts: list[Stats]) -> Stats:
        """Returns the statistics of several batches as one; seconds and draft forwards add up."""
        return Stats(
            torch.cat([part.step_of for part in parts]),
            torch.cat([part.proposed for part in parts]),
            sum(part.draft_forwards for part in parts),
            sum(part.seconds for part in parts),
            sum(part.batches for part in parts),
        )
