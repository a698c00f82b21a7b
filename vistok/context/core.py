"""Core Context Aware Attention (arXiv 2412.12465): old groups of tokens are pooled to one core token each.

Every past token is seen once: raw within a window of ``window .. window + group - 1`` tokens, else in the core token of
its group, in one softmax; no parameters. A group is pooled by the attention of its last query. Differs from the
released code: a core token belongs to a key/value head, pooled by the mean weight of the head's queries, so grouped
heads keep their small cache (``heads="query"`` pools for each query head as released); a group is pooled when its last
token arrives, so no queries are cached and the streaming form equals the masked one in all layers (as released, layers
0 and 1 pool the wrong tokens); windows need not be multiples of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vistok.context.interface import Policy, Step, at_least
from vistok.errors import VistokError
from vistok.ops.attention import attention
from vistok.ops.selection import decode

QUERIES = 512  # of a forward that go together, so that memory does not grow with the square of a prompt


def pool_weights(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Returns how the tokens of a group are weighed, by the group's last query.

    Args:
        q: last queries of P groups [B, Hq, P, D].
        k: keys of their tokens [B, Hkv, P, g, D].
        scale: factor of q·k, ``D**-0.5`` if None.

    Returns:
        [B, Hq, P, g], each group sums to 1.
    """
    grouped = q.unflatten(1, (k.shape[1], -1)) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = torch.einsum("bhqpd,bhprd->bhqpr", grouped, k)
    wide = scores if scores.dtype == torch.float64 else scores.float()
    return wide.softmax(-1).to(k.dtype).flatten(1, 2)


def visible_cores(first: int, new: int, cores: int, raw: tuple[int, int], group: int, window: int) -> Tensor:
    """Returns what tokens see: core tokens, then raw ones.

    Args:
        first: number of the first token.
        new: tokens T.
        cores: core tokens P, from the first group on.
        raw: raw tokens from .. up to, not including.
        group: tokens of a group.
        window: least length of the window.

    Returns:
        bool [T, P + raw tokens].
    """
    own = torch.arange(first, first + new)[:, None]
    pooled = ((own + 1 - window).clamp(min=0) // group).clamp(max=own // group + 1)
    tokens = torch.arange(*raw)
    return torch.cat([torch.arange(cores) < pooled, (tokens >= pooled * group) & (tokens <= own)], 1)


@dataclass
class CoreContext(Policy):
    """Attend to core tokens of the far past and raw tokens of the near one.

    Args:
        group: tokens that become one core token.
        window: raw tokens that every token sees at least, itself included.
        heads: pool for each key/value head, or for each query head.
        pool: by attention (``core``), or the ``mean`` or elementwise ``max`` of a group.
    """

    group: int = 16
    window: int = 1024
    heads: Literal["kv", "query"] = "kv"
    pool: Literal["core", "mean", "max"] = "core"

    name = "core"
    keeps_all = False
    trains = True

    def __post_init__(self) -> None:
        at_least("group", self.group, 1)
        at_least("window", self.window, 1)
        if self.heads not in ("kv", "query"):
            raise VistokError(f"heads is '{self.heads}': choose 'kv' or 'query'.")
        if self.pool not in ("core", "mean", "max"):
            raise VistokError(f"pool is '{self.pool}': choose 'core', 'mean' or 'max'.")

    def rows(self, tokens: int) -> int:
        return tokens // self.group + tokens - self.dropped(tokens) * self.group

    def cache_heads(self, heads: int, kv_heads: int) -> int:
        return kv_heads if self.heads == "kv" else heads

    def attend(self, step: Step, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor:
        repeats = self.cache_heads(q.shape[1], k.shape[1]) // k.shape[1]
        if repeats > 1:
            k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
        if step.cache is None:
            return self.whole(q, k, v, scale)
        out, lengths = torch.zeros_like(q), []
        for which, rows, count in step.groups(by_tokens=True):
            if count == 0:  # a part of the prompt that is padding in this sequence
                lengths.append(rows)
                continue
            tokens = int(step.tokens[which][0])
            parts = (x[which, :, :count] for x in (q, k, v))
            found, rows = self._group(step, layer, which, rows, tokens, *parts, scale)
            step.count(rows * len(found) / len(q), rows * len(found) / len(q))
            out[which, :, :count] = found
            lengths.append(rows)
        step.settle(lengths)
        return out

    def whole(self, q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
        """Returns a whole sequence's attention to itself, with gradients: [B, Hq, L, D] over [B, Hkv, L, D]."""
        length = q.shape[2]
        if length < self.window + self.group:
            return attention(q, k, v, causal=True, scale=scale)
        cores = self.cores(q, k, v, 0, 0, scale)
        return self._read(q, *cores, k, v, 0, 0, scale)

    def _group(
        self,
        step: Step,
        layer: int,
        which: slice,
        rows: int,
        tokens: int,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float | None,
    ) -> tuple[Tensor, int]:
        """New tokens of sequences of one length, whose rows are core tokens of all full groups, then raw tokens."""
        cache, new = step.cache, q.shape[2]
        pooled, dropped = tokens // self.group, self.dropped(tokens)
        cache.replace(layer, k, v, which, rows)
        rows += new
        old = [x[layer, which, :, :rows] for x in (cache.keys, cache.values)]
        raw = [x[:, :, pooled:] for x in old]
        more = self.cores(q, *raw, tokens, dropped * self.group, scale)
        full, gone = (tokens + new) // self.group, self.dropped(tokens + new)
        if new == 1 and full == pooled:  # nothing to pool: rows are read where they lie
            seen = torch.ones(rows, dtype=torch.bool, device=q.device)
            seen[dropped:pooled] = False
            out = decode(q, *old, None if dropped == pooled else seen[None, None, None], scale)
        else:
            cores = [torch.cat([x[:, :, :pooled], y], 2) for x, y in zip(old, more, strict=True)]
            out = self._read(q, *cores, *raw, tokens, dropped * self.group, scale)
        if full == pooled and gone == dropped:
            return out, rows
        first = (gone - dropped) * self.group
        parts = zip(old, more, raw, strict=True)
        kept = [torch.cat([x[:, :, :pooled], y, z[:, :, first:]], 2) for x, y, z in parts]
        cache.replace(layer, *kept, which)
        return out, kept[0].shape[2]

    def dropped(self, tokens: int) -> int:
        """Returns how many groups have raw tokens that nobody sees behind so many tokens."""
        return min(max(0, tokens + 1 - self.window) // self.group, tokens // self.group)

    def cores(
        self, q: Tensor, k: Tensor, v: Tensor, first: int, raw: int, scale: float | None
    ) -> tuple[Tensor, Tensor]:
        """Returns keys and values of the groups that the tokens ``first ..`` of ``q`` complete; ``k, v`` begin at token
        ``raw``.
        """
        size = self.group
        begin, end = first // size, (first + q.shape[2]) // size
        if begin == end:
            return k[:, :, :0], v[:, :, :0]
        rows = slice(begin * size - raw, end * size - raw)
        keys, values = (x[:, :, rows].unflatten(2, (end - begin, size)) for x in (k, v))
        if self.pool == "mean":
            return keys.mean(3), values.mean(3)
        if self.pool == "max":
            return keys.amax(3), values.amax(3)
        last = q[:, :, (begin + 1) * size - 1 - first :: size][:, :, : end - begin]
        weights = pool_weights(last, keys, scale).unflatten(1, (k.shape[1], -1)).mean(2)
        return tuple(torch.einsum("bhpr,bhprd->bhpd", weights, x) for x in (keys, values))

    def _read(
        self, q: Tensor, ck: Tensor, cv: Tensor, k: Tensor, v: Tensor, first: int, raw: int, scale: float | None
    ) -> Tensor:
        """Tokens from ``first`` on over core tokens and the raw tokens from ``raw`` on."""
        parts = []
        for begin in range(0, q.shape[2], QUERIES):
            end = min(begin + QUERIES, q.shape[2])
            near = max(self.dropped(first + begin) * self.group, raw)
            cores = min(ck.shape[2], max(0, first + end - self.window) // self.group)
            seen = visible_cores(first + begin, end - begin, cores, (near, first + end), self.group, self.window)
            keys, values = (
                torch.cat([core[:, :, :cores], x[:, :, near - raw : first + end - raw]], 2)
                for core, x in ((ck, k), (cv, v))
            )
            parts.append(decode(q[:, :, begin:end], keys, values, seen.to(q.device)[None, None], scale))
        return torch.cat(parts, 2)
