"""TokenSelect (arXiv 2411.02886): heads vote softly for single tokens, which attend as if they stood in a row.

Keys are cached before their rotation; first tokens, chosen ones and last ones get consecutive positions, so texts
longer than the model was trained for stay within its positions. Differs from the released code: query heads are paired
with the key/value head of their group (``reference=True`` pairs them as released, wrong for grouped heads), the reuse
of a choice works, sums run in float32, batches may be ragged, and a chunk of a prompt sees at least itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.context.interface import Policy, Step, at_least
from vistok.context.rotary import Rotary
from vistok.errors import VistokError
from vistok.ops.selection import decode, gather_rows, vote_rows


@dataclass
class TokenSelect(Policy):
    """Every token reads the first ``init`` tokens, ``top_k`` chosen ones and the last ``local`` ones.

    Args:
        top_k: chosen tokens.
        init: first tokens.
        local: last tokens, the present ones included.
        chunk: tokens of a prompt that choose together.
        threshold: a decode step keeps a layer's choice while its query has at least this cosine with the one that
            chose; None chooses at every step, as the released code does.
        pool: width of a maximum over neighbouring votes; None for none. Odd.
        reference: pair heads as the released code does.
    """

    top_k: int = 2048
    init: int = 128
    local: int = 512
    chunk: int = 512
    threshold: float | None = 0.9
    pool: int | None = None
    reference: bool = False
    rotary: Rotary | None = field(default=None, init=False, repr=False)
    _choices: dict[int, Choice] = field(default_factory=dict, init=False, repr=False)

    name = "tokenselect"

    def __post_init__(self) -> None:
        for name, least in (("top_k", 1), ("init", 0), ("local", 1), ("chunk", 1)):
            at_least(name, getattr(self, name), least)
        if self.pool is not None and (self.pool < 1 or self.pool % 2 == 0):
            raise VistokError(f"pool is {self.pool}: take an odd width, or None for no pooling.")
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise VistokError(f"threshold is {self.threshold}: it is a cosine, take -1 to 1, or None to choose always.")

    def prepare(self, model: nn.Module) -> None:
        if self.rotary is not None:
            return
        self.rotary = Rotary.of(model)

    def reset(self) -> None:
        self._choices = {}

    def reorder(self, sequences: Tensor) -> None:
        for choice in self._choices.values():
            choice.query, choice.rows = choice.query[sequences], choice.rows[sequences]

    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        if self.rotary.turns[layer]:
            q, k = (self.rotary.turn(x, step.positions, back=True) for x in (q, k))
        keys, values = step.write(layer, k, v)
        if layer not in self._choices:
            chosen = torch.zeros(len(q), self.top_k, dtype=torch.long, device=q.device)
            self._choices[layer] = Choice(torch.zeros(len(q), q.shape[1] * q.shape[3], device=q.device), chosen)
        out = torch.zeros_like(q)
        for which, before, count in step.groups():
            for first in range(0, count, self.chunk):
                last = min(first + self.chunk, count)
                rows = before + last
                part = (keys[which, :, :rows], values[which, :, :rows])
                found = self._read(step, layer, which, q[which, :, first:last], *part, scale, len(q))
                out[which, :, first:last] = found
        step.advance()
        return out

    def _read(
        self, step: Step, layer: int, which: slice, q: Tensor, k: Tensor, v: Tensor, scale: float | None, batch: int
    ) -> Tensor:
        """Returns the attention of consecutive tokens, the last of the rows, over what they choose."""
        new, rows, share = q.shape[2], k.shape[2], len(q) / batch
        local = max(self.local, new)
        if self.init + self.top_k + local < rows:
            chosen = self._choose(step, self._choices[layer], which, layer, q, k, local, share)
            ends = torch.arange(rows, device=q.device).expand(len(q), -1)
            index = torch.cat([ends[:, : self.init], chosen, ends[:, rows - local :]], 1)[:, None]
            k, v = gather_rows(k, index), gather_rows(v, index)
        step.count(share * k.shape[2], share * k.shape[2])
        if self.rotary.turns[layer]:
            places = torch.arange(k.shape[2], device=q.device)
            q, k = self.rotary.turn(q, places[-new:]), self.rotary.turn(k, places)
        mask = None
        if new > 1:
            mask = torch.ones(new, k.shape[2], dtype=torch.bool, device=q.device).tril(k.shape[2] - new)[None, None]
        return decode(q, k, v, mask, scale)

    def _choose(
        self, step: Step, choice: Choice, which: slice, layer: int, q: Tensor, k: Tensor, local: int, share: float
    ) -> Tensor:
        """Returns chosen rows in their order, int64 [B, top_k]."""
        query = self.mean_query(q, layer)
        flat = query.flatten(1)
        stale = torch.ones(len(q), dtype=torch.bool, device=q.device)
        if step.decoding and self.threshold is not None:
            stale = cosine(flat, choice.query[which]) < self.threshold
        if bool(stale.any()):
            step.count(share * k.shape[2], 0)
            votes = self.votes(query, k[:, :, self.init : k.shape[2] - local])
            rows = self.winners(votes) + self.init
            choice.rows[which] = torch.where(stale[:, None], rows, choice.rows[which])
            choice.query[which] = torch.where(stale[:, None], flat.float(), choice.query[which])
        return choice.rows[which]

    def mean_query(self, q: Tensor, layer: int = 0) -> Tensor:
        """Returns the query of tokens that choose together, [B, Hq, D] of un-rotated [B, Hq, T, D]: the mean of them,
        turned as if un-rotated keys stood ``local`` tokens and more before them.
        """
        if self.rotary.turns[layer]:
            q = self.rotary.turn(q, self.local + torch.arange(q.shape[2], device=q.device))
        return q.mean(2)

    def votes(self, query: Tensor, k: Tensor) -> Tensor:
        """Returns candidates' votes [B, N] by one query a head [B, Hq, D] over un-rotated keys [B, Hkv, N, D]."""
        votes = vote_rows(query, k, modulo=self.reference)
        if self.pool is None:
            return votes
        return F.max_pool1d(votes[:, None], self.pool, 1, self.pool // 2)[:, 0]

    def winners(self, votes: Tensor) -> Tensor:
        """Returns the ``top_k`` candidates of most votes in their order, int64 [B, top_k] of [B, N]."""
        if self.pool is None:
            return votes.topk(self.top_k, sorted=False).indices.sort().values
        # Neighbours share a maximum: among equals the first wins, whatever the batch.
        return votes.sort(dim=-1, descending=True, stable=True).indices[:, : self.top_k].sort().values


@dataclass
class Choice:
    """What a layer chose last: the query [B, Hq * D] (zeros: none) and the rows [B, top_k]."""

    query: Tensor
    rows: Tensor


def cosine(query: Tensor, kept: Tensor) -> Tensor:
    """Returns the cosine of queries with those that chose, [B]; -2, below every threshold, where none has."""
    found = F.cosine_similarity(query.float(), kept.float(), -1)
    return torch.where(kept.abs().amax(-1) > 0, found, -2.0)
