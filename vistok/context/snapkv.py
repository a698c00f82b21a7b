"""SnapKV's rule (arXiv 2404.14469): the last tokens of a prompt vote once for the rows that decoding keeps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.context.interface import Policy, Step, at_least
from vistok.context.keeping import attention_weights, top_rows
from vistok.errors import VistokError
from vistok.ops.selection import gather_rows


@dataclass
class SnapKV(Policy):
    """The prompt attends in full, then each key/value head keeps the rows that its last tokens attend to most.

    Args:
        budget: rows that stay of the prompt.
        observed: last tokens of the prompt, which vote and stay themselves.
        pool: width of a maximum over neighbouring votes, odd; 1 for none.
    """

    budget: int = 1024
    observed: int = 32
    pool: int = 7

    name = "snapkv"
    keeps_all = False

    def __post_init__(self) -> None:
        at_least("observed", self.observed, 1)
        if self.budget < self.observed:
            raise VistokError(f"budget is {self.budget}: take at least observed, which is {self.observed}.")
        if self.pool < 1 or self.pool % 2 == 0:
            raise VistokError(f"pool is {self.pool}: take an odd width, or 1 for none.")

    def rows(self, tokens: int) -> int:
        return min(tokens, self.budget)

    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        keys, values = step.write(layer, k, v)
        out = step.dense(layer, q, keys, values, scale)
        step.advance()
        if not step.first:
            return out
        lengths = []
        for which, _, count in step.groups():
            rows = min(count, self.budget)
            if count > self.budget:
                part = (x[which, :, :count] for x in (keys, values))
                kept = self.compress(q[which, :, count - self.observed : count], *part, scale)
                step.cache.replace(layer, *kept, which)
            lengths.append(rows)
        step.settle(lengths)
        return out

    def compress(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
        """Returns ``budget`` rows of [B, Hkv, S, D], chosen by the queries of the last tokens [B, Hq, observed, D]."""
        new, rows = q.shape[2], k.shape[2]
        seen = torch.ones(new, rows, dtype=torch.bool, device=q.device).tril(rows - new)[None]
        votes = attention_weights(q, k, seen, scale).sum((2, 3))
        votes[..., :-new] = F.max_pool1d(votes[..., :-new], self.pool, 1, self.pool // 2)
        kept, _ = top_rows(votes, self.budget, new)
        return gather_rows(k, kept), gather_rows(v, kept)
