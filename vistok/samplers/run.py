"""What happens in a run: what a target says of a tree, what a verifier keeps of it, and the state between the steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from vistok.ops import KVCache
from vistok.samplers.noise import DRAW, PURPOSES, Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.tree import TokenTree


class Scores(NamedTuple):
    """What a target says about a tree.

    Attributes:
        logits: guided logits behind every node, [B, N, V].
        hidden: final features of the nodes, [B, N, D]; with guidance [2B, N, D], the unconditional ones behind.
        extra: logits behind the tree's extra rows, [B, M, V]; None where it has none.
    """

    logits: Tensor
    hidden: Tensor | None = None
    extra: Tensor | None = None


class Verdict(NamedTuple):
    """What a verifier keeps of a tree.

    Attributes:
        emitted: decided tokens, int64 [B, M]; the first ``count`` of each sequence are valid.
        count: tokens decided, which is also the number of nodes kept, the root included; int64 [B], 1 to M.
        path: nodes kept, root first, padded with -1, int64 [B, M]; None for a chain.
        probs: the target's processed laws behind the nodes, [B, N, V], of verifiers that form them all.
    """

    emitted: Tensor
    count: Tensor  # type: ignore[assignment]  # a tuple's own ``count`` is not missed
    path: Tensor | None = None
    probs: Tensor | None = None

    def keep_rows(self, cache: KVCache, rows: int | None, copies: int = 1) -> None:
        """Keeps the rows of the accepted path in a cache that the tree was written to, and drops the others.

        Args:
            cache: of ``copies`` times B sequences; with guidance there are two.
            rows: how many nodes every sequence keeps, where it is the same number; else None.
            copies: see ``cache``.
        """
        if self.path is not None:
            cache.commit(self.path.repeat(copies, 1), self.count.repeat(copies))
        else:
            cache.advance(self.count.repeat(copies) if rows is None else rows)


class Processing(Protocol):
    """Changes the logits behind a token by the text that ends in it, before they become probabilities.

    It is asked along the path that a verifier takes and never about a draft that was turned down, so it may be defined
    on allowed text alone.
    """

    def first(self, logits: Tensor) -> Tensor:
        """Returns the processed logits [B, V] of the first tokens."""

    def behind(self, run: Run, tree: TokenTree, node: Tensor, logits: Tensor) -> Tensor:
        """Returns the processed logits behind one node of each tree.

        Args:
            node: int64 [B]; -1 in sequences that ask nothing, whose rows may be anything.
            logits: of the target, [B, V].
        """


# The tokens that a step decided [B, M], and how many of each sample's are valid [B], to those behind which the sample
# stops, bool [B, M].
Stop = Callable[["Run", Tensor, Tensor], Tensor]


@dataclass
class Run:
    """The state of a run that drafters and verifiers read; only the loop writes it.

    Attributes:
        params, noise: of the run.
        length: tokens of a sample.
        tokens: decided tokens, int64 [B, length + slack]; what lies behind ``decided`` is garbage.
        decided: decided tokens of each sample, int64 [B]; the root of the next tree is the last of them.
        least: smallest of them, known on the host.
        even: they are known to be all equal.
        step: number of the current verify step, from 1.
        draws: the uniform of each position for tokens that are drawn from the target once and for all, [B, length].
        step_of: the step that decided each token, int64, shaped like ``tokens``.
        proposed: draft tokens that were offered, int64 [B].
        final: tokens that each sample has in the end, as far as is known, int64 [B].
        ends: tokens that end a sample early, int64 [E]; such a sample counts as wholly decided.
        processing: changes the target's logits, if anything does.
        stop: further reasons to end a sample.
        together: all samples that still run decide equally many tokens in each step, for a ``processing`` or ``stop``
            that must see the batch as plain decoding shows it: one call a token, texts of one length.
    """

    params: SamplingParams
    noise: Noise
    length: int
    tokens: Tensor
    decided: Tensor
    draws: Tensor
    step_of: Tensor
    proposed: Tensor
    final: Tensor
    ends: Tensor | None = None
    processing: Processing | None = None
    stop: Stop | None = None
    together: bool = False
    least: int = 0
    even: bool = True
    step: int = 0
    _block: tuple[tuple[int, int], Tensor] | None = None

    @staticmethod
    def begin(
        params: SamplingParams,
        noise: Noise,
        first: Tensor,
        length: int,
        slack: int,
        ends: Tensor | None = None,
        processing: Processing | None = None,
        stop: Stop | None = None,
        together: bool = False,
    ) -> Run:
        """A run whose first tokens are drawn from logits [B, V]."""
        batch, device = len(first), first.device
        draws = noise.uniform(torch.arange(length, device=device).expand(batch, -1), DRAW)
        tokens = torch.zeros(batch, length + slack, dtype=torch.int64, device=device)
        nothing = torch.zeros(batch, dtype=torch.int64, device=device)
        counts = torch.zeros_like(tokens), torch.zeros_like(nothing)
        final = torch.full_like(nothing, length)
        run = Run(params, noise, length, tokens, nothing, draws, *counts, final, ends, processing, stop, together)
        if processing is not None:
            first = processing.first(first)
        run.tokens[:, 0] = params.draw(first, draws[:, 0])
        verdict = run.cut(Verdict(tokens[:, :1], torch.ones_like(nothing)))
        run.decided = verdict.count
        run.least = 1
        if run.early:
            run._finish()
        return run

    @property
    def early(self) -> bool:
        """Whether a sample may end before its length."""
        return self.ends is not None or self.stop is not None

    def cut(self, verdict: Verdict) -> Verdict:
        """Keep nothing behind a sample's length, or behind the first token that ends it."""
        count = torch.minimum(verdict.count, self.length - self.decided)
        if not self.early:
            return verdict._replace(count=count)
        places = torch.arange(verdict.emitted.shape[1], device=count.device)
        end = places < count[:, None]
        end = torch.zeros_like(end) if self.ends is None else end & torch.isin(verdict.emitted, self.ends)
        if self.stop is not None:
            count = _first(end, count)
            end = (end | self.stop(self, verdict.emitted, count)) & (places < count[:, None])
        if end.device.type != "cpu" or bool(end.any()):  # as it hardly ever does, and asking costs nothing there
            count = _first(end, count)
            self.final = torch.where(end.any(1), self.decided + count, self.final)
        return verdict._replace(count=count)

    def behind(self, tree: TokenTree, scores: Scores, node: Tensor) -> Tensor:
        """Logits behind one node of each tree, as they become probabilities: nodes int64 [B] to [B, V].

        Args:
            node: -1 in sequences that ask nothing; their rows may be anything.
        """
        logits = scores.logits[torch.arange(len(node), device=node.device), node]
        return logits if self.processing is None else self.processing.behind(self, tree, node, logits)

    @property
    def stepwise(self) -> bool:
        """Whether a verifier must go along its path token by token, instead of judging all nodes at a time."""
        return self.processing is not None or self.together

    def halts(self, level: int, token: Tensor, asked: Tensor, took: Tensor) -> Tensor:
        """Samples whose accepted token is decided without a look behind it, in a run that is ``stepwise``.

        Args:
            level: how many tokens this step has decided with it.
            token: int64 [B].
            asked: samples that were at this level, bool [B].
            took: those of them that accepted a draft, whose ``token`` counts, bool [B].
        """
        last = self.decided + level >= self.length
        if self.ends is not None:
            last = last | torch.isin(token, self.ends)
        last = last & took
        if self.together and bool((last | (asked & ~took)).any()):
            return took
        return last

    def _finish(self) -> None:
        self.decided = torch.where(self.decided >= self.final, self.length, self.decided)
        self.least = int(self.decided.min())

    def record(self, tree: TokenTree, verdict: Verdict) -> int | None:
        """Take over what was decided; returns how many nodes every sequence keeps, where it is the same number."""
        # What is written behind a sequence's count is garbage, and overwritten by its next step.
        places = self.decided[:, None] + torch.arange(verdict.emitted.shape[1], device=self.decided.device)
        self.tokens.scatter_(1, places, verdict.emitted)
        self.step_of.scatter_(1, places, self.step)
        left = self.length - self.decided
        self.decided = self.decided + verdict.count
        if tree.nodes == 1 and self.even and not self.early:  # known without asking the device
            self.least += 1
            return 1
        if tree.nodes > 1:
            self.proposed += left.clamp(max=tree.nodes) - (left > 0).long()
        kept = verdict.count.tolist()
        self._finish()
        same = len(set(kept)) == 1
        self.even = self.even and same
        return kept[0] if same else None

    @property
    def root(self) -> Tensor:
        """The last decided token, int64 [B, 1]."""
        return self.tokens.gather(1, self.decided[:, None] - 1)

    def drawn_with(self, depth: Tensor) -> Tensor:
        """The uniforms that plain decoding draws the tokens behind nodes with, [B, N], from their depth below the root:
        [N] or [B or 1, N].
        """
        return self.draws.gather(1, (self.decided[:, None] + depth).clamp(0, self.length - 1))

    def uniform(self, offsets: Tensor, purpose: int, *keys: int | Tensor) -> Tensor:
        """Uniforms of this step for positions ``decided + offsets``.

        Args:
            offsets: [N] or [B, N].
            purpose, keys: see ``Noise.uniform``; keys as wide as the offsets.

        Returns:
            [B, N].
        """
        return self.noise.uniform(self.decided[:, None] + offsets, purpose, self.step, *keys)

    def window(self, nodes: int, purpose: int) -> Tensor:
        """``uniform`` of offsets 0 to ``nodes - 1``, [B, nodes]; one computation serves all purposes of a step."""
        if self._block is None or self._block[0] != (self.step, nodes):
            device = self.decided.device
            positions = self.decided[:, None] + torch.arange(nodes, device=device)
            purposes = torch.arange(PURPOSES, device=device)[:, None]
            self._block = (self.step, nodes), self.noise.uniform(positions[:, None], purposes, self.step)
        return self._block[1][:, purpose]


def _first(end: Tensor, count: Tensor) -> Tensor:
    """Tokens up to the first that ends its sample, [B, M] to [B]; ``count`` where none does."""
    return torch.where(end.any(1), end.long().argmax(1) + 1, count)
