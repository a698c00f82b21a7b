"""What a policy of the KV cache is: how a layer's new tokens read it, and what stays in it.

A policy gets a layer's rotated queries, keys and values, sequences flush left, and stores and attends as it likes
through the :class:`Step` of the forward. A policy that only reads less keeps every row (``keeps_all``), so drafts can
be checked on it and rejected rows dropped; one that keeps less rewrites a layer's rows while the forward passes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.ops import KVCache, attention
from vistok.ops.selection import decode

DRAFT = 64  # tokens up to which a forward behind a filled cache is a decode step or a draft, not a part of a prompt


@dataclass
class Report:
    """What the forwards since the policy's last prompt have read, and what is kept.

    A row is the key or the value of one token in one key/value head of one layer. Numbers are means over the sequences
    of a batch, of which full attention reads as many rows as the longest has.

    Attributes:
        steps: decode steps and drafts.
        read: rows that those steps read, selection included.
        full: rows that full attention would have read.
        kept: rows in the cache by sequence, of one layer and head, keys and values counted once.
        tokens: tokens that each sequence had.
    """

    steps: int = 0
    read: float = 0.0
    full: float = 0.0
    kept: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Returns rows read over rows that full attention would read, 1 where nothing was decoded."""
        return self.read / self.full if self.full else 1.0


class Step:
    """One forward of a batch.

    Args:
        cache: where rows are; None for a forward without one (training).
        new: tokens T of the forward, flush left in each sequence.
        counts: how many of them are real, int64 [B]; all if None.
        mask: which rows each token sees, bool [B or 1, T, S], where rows were stored by somebody else (drafts): then
            ``k`` and ``v`` are all rows, and nothing is written.
        tokens: tokens that each sequence had before, int64 [B]; rows in use if None.
        positions: of the new tokens in the rotation, int64 [B or 1, T]; those that follow the tokens if None.
        report: what is read is counted here.
    """

    def __init__(
        self,
        cache: KVCache | None,
        new: int,
        counts: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        tokens: Tensor | None = None,
        positions: Tensor | None = None,
        report: Report | None = None,
    ) -> None:
        self.cache, self.new, self.counts, self.mask = cache, new, counts, mask
        self.report = report
        self.start = cache.mark() if cache is not None else None
        self.tokens = tokens if tokens is not None or cache is None else cache.lengths.clone()
        if positions is None and self.tokens is not None:
            positions = self.tokens[:, None] + torch.arange(new, device=self.tokens.device)
        self.positions = positions
        before = 0 if self.start is None else self.start.bound
        self.first = mask is None and before == 0
        self.decoding = not self.first and new <= DRAFT
        if mask is not None:
            self.first = new == mask.shape[-1]
            self.decoding = not self.first  # whoever brings masks reads a prompt at once

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores the new rows [B, H, T, D] of a layer behind the old ones, and returns all of them, [B, H, S, D]."""
        if self.cache is None or self.mask is not None:
            return k, v
        self.cache.reserve(self.cache.bound + k.shape[2])
        return self.cache.write(layer, k, v)

    def advance(self) -> None:
        """Puts the layer's new rows in use from here on."""
        if self.cache is not None and self.mask is None:
            self.cache.advance(self.new if self.counts is None else self.counts)

    def settle(self, lengths: list[int]) -> None:
        """Sets the rows in use after a layer rewrote them, one number for each of :meth:`groups`."""
        if self.cache is None:
            return
        if len(lengths) == 1 and (self.counts is None or len(self.counts) == 1):
            self.cache.crop(lengths[0])
        else:
            self.cache.crop(torch.tensor(lengths, device=self.cache.lengths.device))

    def groups(self, by_tokens: bool = False) -> list[tuple[slice, int, int]]:
        """Returns the sequences that can be handled together, all at once where lengths agree: (which, rows before, new
        tokens).

        Args:
            by_tokens: lengths are those of the texts too; of texts of different lengths as many rows may be left.
        """
        if self.start is None:
            return [(slice(None), 0, self.new)]
        if self.start.common and self.counts is None and not (by_tokens and self.ragged):
            return [(slice(None), self.start.bound, self.new)]
        before = self.start.lengths.tolist()
        counts = [self.new] * len(before) if self.counts is None else self.counts.tolist()
        return [(slice(b, b + 1), *pair) for b, pair in enumerate(zip(before, counts, strict=True))]

    @cached_property
    def ragged(self) -> bool:
        """Whether some sequence had more tokens than another one."""
        return self.tokens is not None and bool((self.tokens != self.tokens[0]).any())

    @cached_property
    def visible(self) -> Tensor | None:
        """Returns which rows each token sees where all rows are kept, bool [B or 1, T, S]; None if each sees all."""
        if self.mask is not None:
            return None if self.mask.shape[1] == 1 and bool(self.mask.all()) else self.mask
        if self.start is None or self.start.common:
            before = 0 if self.start is None else self.start.bound
            if self.new == 1:
                return None
            device = None if self.cache is None else self.cache.keys.device
            return causal(torch.tensor([before], device=device), self.new, before + self.new)
        return causal(self.start.lengths, self.new, self.start.bound + self.new)

    def count(self, keys: float, values: float) -> None:
        """Counts how many rows the step has read in this layer, for each sequence and key/value head."""
        if self.report is not None and self.decoding:
            self.report.read += keys + values

    def dense(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Returns full attention [B, Hq, T, D] over rows of :meth:`write`."""
        rows = k.shape[2]
        self.count(rows, rows)
        if self.first and self.mask is None:
            return attention(q, k, v, causal=True, scale=scale)
        visible = self.visible
        return decode(q, k, v, None if visible is None else visible[:, None], scale)


class Fill(Step):
    """A forward of tokens that go to given rows of one sequence, between rows that are there already.

    Args:
        cache: where rows are.
        sequence: which sequence.
        rows: of the new tokens, int64 [T], ascending; every token sees all rows up to its own.
        length: rows of the sequence when all are there.
    """

    def __init__(self, cache: KVCache, sequence: int, rows: Tensor, length: int) -> None:
        super().__init__(None, len(rows), mask=torch.arange(length, device=rows.device) <= rows[None, :, None])
        self.rows, self.into, self.sequence, self.length = rows, cache, sequence, length
        self.first = self.decoding = False

    def write(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        both = (self.into.keys[layer, self.sequence], self.into.values[layer, self.sequence])
        for cached, new in zip(both, (k, v), strict=True):
            cached.index_copy_(1, self.rows, new[0])
        keys, values = (cached[None, :, : self.length] for cached in both)
        return keys, values


class Policy(ABC):
    """How a decoder keeps and reads its cache.

    Attributes:
        name: how commands call it.
        keeps_all: every row stays in the cache.
        drafts: rows lie as transformers would have them, so that token trees can be checked and cached text edited.
        trains: its forward without a cache has a gradient.
        learns: in training mode its forward with a cache has one, within the tokens of that forward.
    """

    name: ClassVar[str]
    keeps_all: ClassVar[bool] = True
    drafts: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def prepare(self, model: nn.Module) -> None:  # noqa: B027
        """Looks at the model before the first forward.

        Raises:
            VistokError: the policy cannot work on it.
        """

    def reset(self) -> None:  # noqa: B027
        """Forgets earlier sequences: a new prompt begins."""

    def reorder(self, sequences: Tensor) -> None:  # noqa: B027
        """Follows the beams: sequence b continues sequence ``sequences[b]``, int64 [B]."""

    def rows(self, tokens: int) -> int:
        """Returns how many rows a layer holds of so many tokens."""
        return tokens

    def cache_heads(self, heads: int, kv_heads: int) -> int:
        """Returns the heads of the cache, for a layer of so many query heads and key/value heads."""
        return kv_heads

    @abstractmethod
    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        """Stores the new rows of one layer, and attends.

        Args:
            step: the forward.
            layer: index of the layer.
            q: rotated queries [B, Hq, T, D].
            k: rotated keys of the new tokens [B, Hkv, T, D].
            v: values of the new tokens [B, Hkv, T, D].
            scale: factor of q·k, ``D**-0.5`` if None.

        Returns:
            [B, Hq, T, D].
        """

    def settings(self) -> dict[str, Any]:
        """Returns the numbers that the policy was made with."""
        options: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        return {item.name: getattr(self, item.name) for item in options if item.init}


class Full(Policy):
    """Attention to all keys, by SDPA: what the other policies are measured against."""

    name = "full"
    drafts = True
    trains = True

    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        rows = step.write(layer, k, v)
        out = step.dense(layer, q, *rows, scale)
        step.advance()
        return out

    def settings(self) -> dict[str, Any]:
        return {}


def causal(before: Tensor, new: int, rows: int) -> Tensor:
    """Returns a causal mask, bool [B, T, rows]: token t of T sees itself and the rows in front of it. ``before`` are
    the rows in use, [B].
    """
    own = before[:, None] + torch.arange(new, device=before.device)
    return torch.arange(rows, device=before.device) <= own[..., None]


def at_least(name: str, value: int, least: int) -> None:
    """Raises VistokError if an option of a policy is too small."""
    if value < least:
        raise VistokError(f"{name} is {value}: take {least} or more.")
