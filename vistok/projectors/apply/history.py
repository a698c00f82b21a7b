"""A conversation goes on: what a shortened cache holds, in terms of the prompts that its user knows.

A cache of shortened prompts has fewer columns than the conversation has tokens. What became of each is kept with the
cache, so that the next turn may give the whole conversation, or what is new to it, as with any cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.projectors.apply.shrink import Shrunk

_HISTORY = "_vistok_history"  # on a cache


@dataclass
class History:
    """What a cache was filled with: the prompts as given, and which of their columns it holds.

    Attributes:
        ids: the prompts as they were given, int64 [B, S].
        present: 1 at tokens of them, 0 at padding, int64 [B, S].
        shrunk: the columns of them that the cache holds, in this order; what was generated since follows.
        offset: what is added to the number of tokens before a token to get its position, int64 [B, 1].
        ordered: whether the cache's rows are those of the sequences; after a beam search they are not.
    """

    ids: Tensor
    present: Tensor
    shrunk: Shrunk
    offset: Tensor
    ordered: bool = True

    def keep_with(self, cache: Any) -> None:
        """Let the cache remember this."""
        if cache is not None:
            setattr(cache, _HISTORY, self)

    def repeated(self, times: int) -> History:
        """The same with each row several times, one after the other."""
        if times == 1:
            return self
        ids, present, columns, mask, offset = (
            t.repeat_interleave(times, 0)
            for t in (self.ids, self.present, self.shrunk.columns, self.shrunk.mask, self.offset)
        )
        return History(ids, present, Shrunk(columns, mask), offset, self.ordered)


def history_of(cache: Any) -> History | None:
    """What a cache remembers; None if it was filled without compression."""
    return getattr(cache, _HISTORY, None)


@dataclass
class Turn:
    """Prompts of a call, parted into what the cache holds and what is new.

    Attributes:
        history: of the cache.
        ids, mask: of the whole conversation, int64 [B, S]; what the cache's part was is unknown where only new ids were
            given, which a mask longer than them tells.
        start: the first new column.
    """

    history: History
    ids: Tensor
    mask: Tensor
    start: int

    @property
    def new_ids(self) -> Tensor:
        """[B, S - start]."""
        return self.ids[:, self.start :]

    @property
    def new_mask(self) -> Tensor:
        """[B, S - start]."""
        return self.mask[:, self.start :]

    def joined(self, new: Shrunk) -> Shrunk:
        """The cache's columns and then those of the new part, as columns of the whole conversation."""
        old = self.history.shrunk
        middle = torch.arange(self.history.ids.shape[1], self.start, device=self.ids.device).expand(len(self.ids), -1)
        columns = torch.cat([old.columns, middle, self.start + new.columns], 1)
        mask = torch.cat([self.mask.gather(1, old.columns) * old.mask, self.mask[:, middle[0]], new.mask], 1)
        return Shrunk(columns, mask.long())


def turn_of(ids: Tensor, mask: Tensor | None, cache: Any, generated: bool) -> Turn:
    """Parts the prompts of a call into what the cache holds and what is new.

    Args:
        ids: as given, [B, S].
        mask: as given, or None.
        cache: of the call, or None.
        generated: whether this is ``generate``, to which whole conversations are given.

    Raises:
        VistokError: the ids do not go on from what the cache holds.
    """
    past = 0 if cache is None else int(cache.get_seq_length())
    history = history_of(cache) if past else None
    if history is None:
        columns = torch.arange(past, device=ids.device).expand(len(ids), -1)
        before = ids[:, :past] if ids.shape[1] > past else torch.zeros_like(columns)
        given = torch.ones_like(columns)
        history = History(before, given, Shrunk(columns, given), torch.zeros_like(ids[:, :1]))
        known = past > 0 and ids.shape[1] > past
    else:
        known = True
    if not history.ordered:
        raise VistokError("a cache of a beam search is in another order than its sequences: start without the cache.")
    if len(history.ids) != len(ids):
        raise VistokError(f"the cache is of {len(history.ids)} prompts, and {len(ids)} are given: start without it.")
    start = history.ids.shape[1] + past - history.shrunk.columns.shape[1]
    if start < history.ids.shape[1]:
        raise VistokError("the cache was cut within its prompt: start without the cache.")
    only_new = past > 0 and (not generated or (mask is not None and mask.shape[1] > ids.shape[1]))
    if not only_new and ids.shape[1] <= start and past:
        raise VistokError(
            f"the cache holds {start} tokens of the conversation, and {ids.shape[1]} are given: pass the whole "
            "conversation, or the new tokens with the attention mask of all."
        )
    if only_new:
        middle = ids[:, :1].expand(-1, start - history.ids.shape[1])  # what was generated is not known
        whole = torch.cat([history.ids, middle, ids], 1)
    else:
        whole = ids
    mask = _whole_mask(mask, history, whole.shape[1], start, past)
    first = history.ids.shape[1]
    if known and not only_new and bool(((whole[:, :first] != history.ids) & history.present.bool()).any()):
        raise VistokError("the ids do not begin with the prompts that the cache holds: start without the cache.")
    return Turn(history, whole, mask, start)


def _whole_mask(mask: Tensor | None, history: History, width: int, start: int, past: int) -> Tensor:
    """The mask of the whole conversation, from one of it, of the cache's columns and the new ones, or none."""
    if mask is not None and mask.shape[1] == width:
        return mask
    tail = width - start
    if mask is not None and mask.shape[1] not in (past + tail, tail):
        raise VistokError(
            f"the attention mask has {mask.shape[1]} columns, the conversation {width}: pass the mask of all of it."
        )
    new = history.ids.new_ones(len(history.ids), width - history.ids.shape[1])
    if mask is not None:
        new[:, -tail:] = mask[:, -tail:]
    return torch.cat([history.present, new], 1)


def new_pictures(turn: Turn, totals: list[int], token: int) -> list[int]:
    """Returns which of a conversation's pictures are new to the cache.

    Args:
        turn: the conversation.
        totals: placeholders of each picture, row after row.
        token: id of a placeholder.

    Raises:
        VistokError: pictures and placeholders do not match.
    """
    places = (turn.ids == token) & turn.mask.bool()
    old, every = places[:, : turn.start].sum(1).tolist(), places.sum(1).tolist()
    mine, picture = [], 0
    for before, there in zip(old, every, strict=True):
        seen = 0
        while seen < there and picture < len(totals):
            if seen >= before:
                mine.append(picture)
            seen, picture = seen + totals[picture], picture + 1
        if seen != there:
            break
    else:
        if picture == len(totals):
            return mine
    raise VistokError(
        f"the conversation has {sum(every)} image placeholders, of which the cache holds {sum(old)}, but the "
        f"{len(totals)} images fill {sum(totals)}: pass the images of the whole conversation, or the new ones alone."
    )
