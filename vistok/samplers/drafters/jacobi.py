"""Speculative Jacobi decoding: the target drafts for itself, a window of tokens ahead (arXiv 2410.01699).

Each pass scores a window of drafts. A draft was drawn from the row law of an earlier pass, so the exact rule with that
law keeps the output's law. Published SJD redraws everything behind the first rejection; coupled SJD (MC-SJD, arXiv
2510.24211) applies the accept-or-residual rule there too, so that good drafts survive. Both are lossless when the law
recorded for a draft is the row law of the latest pass, also for drafts that were kept: the law of an older draft would
bias the result.

Against the published code: sequences of a batch advance on their own; the residual is not processed a second time;
fresh drafts may come from a law that is recorded as such, and not only as a fixed guess; the window keeps its width to
the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.ops import draw
from vistok.samplers.cost import best_window, forward_cost
from vistok.samplers.drafters.plain import Autoregressive, NoDraft
from vistok.samplers.interface import AutoregressiveSampler
from vistok.samplers.noise import DRAFT, FRESH, SAMPLE
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree, TreeShape
from vistok.samplers.verifiers.draw import Draw
from vistok.samplers.verifiers.exact import ExactChain

VARIANTS = ("coupled", "published")


def neighbour_positions(positions: Tensor, existing: Tensor, row: int, up: bool) -> tuple[Tensor, Tensor]:
    """Where the left or upper neighbour of each position lies in raster order.

    Args:
        positions: [B, m].
        existing: number of tokens that exist, drafts included, [B, 1]; a neighbour behind them is replaced by the last.
        row: tokens of a line.
        up: the upper neighbour instead of the left one.

    Returns:
        The neighbours' positions and whether there is one, [B, m] each.
    """
    there = positions >= row if up else positions % row > 0
    source = positions - (row if up else 1)
    return torch.minimum(source, existing - 1).clamp(min=0), there


def line_ends(decided: Tensor, rows: int, line: int) -> Tensor:
    """Which rows of a pass predict a forced end-of-line token, for models whose lines end with one.

    Args:
        decided: picture tokens before the pass, [B].
        rows: of the pass; row i predicts token ``decided + i + 1``.
        line: tokens of a line, its end included.

    Returns:
        bool [B, rows].
    """
    return (decided[:, None] + torch.arange(1, rows + 1, device=decided.device)) % line == 0


class Fresh(NamedTuple):
    """What fresh drafts may be made of.

    Attributes:
        random: tokens drawn uniformly, int64 [B, m]; they serve where there is no neighbour.
        uniform_law: what those were drawn from, [V].
        token: the neighbours' tokens, int64 [B, m].
        law: the neighbours' laws, [B, m, V]; only initialisations that read laws get them.
        there: whether there is a neighbour, bool [B, m].
        uniform: random numbers for draws from laws, [B, m].
    """

    random: Tensor
    uniform_law: Tensor
    token: Tensor
    law: Tensor | None
    there: Tensor
    uniform: Tensor

    def certain(self, tokens: Tensor) -> Tensor:
        """Returns one-hot laws of tokens, [B, m, V]."""
        return F.one_hot(tokens, len(self.uniform_law)).to(self.uniform_law.dtype)


def uniform_init(fresh: Fresh) -> tuple[Tensor, Tensor]:
    """Returns any tokens, and records that they are uniform draws."""
    return fresh.random, fresh.uniform_law.expand(*fresh.random.shape, -1)


def random_init(fresh: Fresh) -> tuple[Tensor, Tensor]:
    """Returns any tokens as if they were fixed guesses (published)."""
    return fresh.random, fresh.certain(fresh.random)


def repeat_init(fresh: Fresh) -> tuple[Tensor, Tensor]:
    """Returns the neighbours' tokens as fixed guesses."""
    tokens = torch.where(fresh.there, fresh.token, fresh.random)
    return tokens, fresh.certain(tokens)


def sample_init(fresh: Fresh) -> tuple[Tensor, Tensor]:
    """Returns draws from the neighbours' laws, and records these."""
    tokens = torch.where(fresh.there, draw(fresh.law, fresh.uniform), fresh.random)
    return tokens, torch.where(fresh.there[..., None], fresh.law, fresh.certain(tokens))


def top_init(fresh: Fresh) -> tuple[Tensor, Tensor]:
    """Returns the most likely tokens of the neighbours' laws as fixed guesses."""
    tokens = torch.where(fresh.there, fresh.law.argmax(-1), fresh.random)
    return tokens, fresh.certain(tokens)


class Init(NamedTuple):
    """How a fresh draft is made.

    Attributes:
        make: from what there is to tokens int64 [B, m] and the laws that they were drawn from, [B, m, V].
        up: the neighbour is the upper one, not the left one.
        reads_laws: it needs the neighbours' laws.
    """

    make: Callable[[Fresh], tuple[Tensor, Tensor]]
    up: bool = False
    reads_laws: bool = False


INITS: dict[str, Init] = {
    "uniform": Init(uniform_init),
    "random": Init(random_init),
    "repeat-left": Init(repeat_init),
    "repeat-up": Init(repeat_init, up=True),
    "sample-left": Init(sample_init, reads_laws=True),
    "sample-up": Init(sample_init, up=True, reads_laws=True),
    "top-left": Init(top_init, reads_laws=True),
    "top-up": Init(top_init, up=True, reads_laws=True),
}


class JacobiWindow:
    """A window of drafts that the target keeps refining.

    Args:
        nodes: rows of a pass, the last decided token included.
        row: tokens of a line of the picture.
        init: how a fresh draft is made, one of INITS.
        coupled: whether drafts behind a rejection survive where the rule lets them; else they are redrawn (published).
        warmup: passes of plain decoding before the window opens.
        vocabulary: tokens that a fresh draft may take, int64; all if None.

    Raises:
        VistokError: unknown init, or a window of less than 2.
    """

    kind = LawKind.STALE
    chain = True
    forwards = 0

    def __init__(
        self,
        nodes: int,
        row: int,
        init: str = "repeat-up",
        coupled: bool = True,
        warmup: int = 0,
        vocabulary: Tensor | None = None,
    ):
        _check_window(nodes, init)
        self.nodes, self.row, self.init, self.coupled, self.warmup = nodes, row, INITS[init], coupled, warmup
        self.vocabulary = vocabulary

    def start(self, run: Run, prefill: Scores) -> None:
        """An empty window."""
        first = run.params.probabilities(prefill.logits[:, -1])  # [B, V]
        batch, self._size = first.shape
        device = first.device
        self._ids = torch.arange(self._size, device=device) if self.vocabulary is None else self.vocabulary
        self._uniform_law = first.new_zeros(self._size).index_fill_(0, self._ids, 1 / len(self._ids))
        self._slots = torch.arange(1, self.nodes, device=device)  # offsets of the drafts from the last decided token
        self._window, self._lone = TreeShape.chain_of(self.nodes, device), TreeShape.chain_of(1, device)
        self._drafts = torch.zeros(batch, self.nodes - 1, dtype=torch.int64, device=device)
        self._laws = first.new_zeros(batch, self.nodes - 1, self._size)
        self.kept = torch.zeros(batch, dtype=torch.int64, device=device)  # slots that hold drafts
        self._rows = None  # the latest law of each position, for rules that read a neighbour's
        if self.init.reads_laws:
            self._rows = first.new_zeros(batch, run.tokens.shape[1], self._size)
            self._rows[:, 0] = first

    def propose(self, run: Run) -> TokenTree:
        """The kept drafts, filled up with fresh ones."""
        if run.step <= self.warmup:
            return TokenTree(run.root, self._lone, self.kind, self._laws)
        fresh = self._slots > self.kept[:, None]  # [B, W - 1]
        tokens, laws = self._fresh(run)
        self._drafts = torch.where(fresh, tokens, self._drafts)
        self._laws = torch.where(fresh[..., None], laws, self._laws)
        return TokenTree(torch.cat([run.root, self._drafts], 1), self._window, self.kind, self._laws)

    def _fresh(self, run: Run) -> tuple[Tensor, Tensor]:
        offsets = self._slots - 1
        uniform = run.window(self.nodes, DRAFT)[:, :-1]
        random = self._ids[(uniform * len(self._ids)).long().clamp(max=len(self._ids) - 1)]
        positions = run.decided[:, None] + offsets
        existing = (run.decided + self.kept)[:, None]
        source, there = neighbour_positions(positions, existing, self.row, self.init.up)
        decided = source - run.decided[:, None]  # number of the draft, negative where the token is decided
        token = torch.where(
            decided < 0,
            run.tokens.gather(1, source),
            self._drafts.gather(1, decided.clamp(0, self.nodes - 2)),
        )
        law = None if self._rows is None else self._rows.gather(1, source[..., None].expand(-1, -1, self._size))
        uniform = run.window(self.nodes, SAMPLE)[:, :-1]
        return self.init.make(Fresh(random, self._uniform_law, token, law, there, uniform))

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Move the window on; drafts behind the rejection are redrawn, and each is now one of its new row's law."""
        p = verdict.probs
        tokens = verdict.emitted if self.coupled else draw(p, run.window(tree.nodes, FRESH))
        if self._rows is not None:
            rows = torch.arange(tree.nodes, device=p.device)
            places = (run.decided[:, None] + rows)[..., None].expand(-1, -1, self._size)
            self._rows.scatter_(1, places.clamp(max=self._rows.shape[1] - 1), p)
        self.kept = tree.nodes - verdict.count
        source = (verdict.count[:, None] + self._slots - 1).clamp(max=tree.nodes - 1)
        self._drafts = tokens.gather(1, source)
        self._laws = p.gather(1, source[..., None].expand(-1, -1, self._size))


_TUNED: WeakKeyDictionary[nn.Module, dict[tuple[int, bool], int]] = WeakKeyDictionary()  # by batch and guidance


@dataclass(frozen=True)
class SpeculativeJacobi(AutoregressiveSampler):
    """Several tokens for a target forward, without a draft model and without a change of the output's distribution.

    Attributes:
        window: rows of a pass, or ``auto`` for the window that suits the machine, see ``tuned``.
        init: how a fresh draft is made, one of INITS.
        variant: ``coupled`` keeps drafts behind a rejection where it can, ``published`` redraws them.

    Raises:
        VistokError: unknown init or variant, or a window of less than 2.
    """

    window: int | str = 16
    init: str = "repeat-up"
    variant: str = "coupled"

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise unknown_name("variant of speculative Jacobi decoding", self.variant, list(VARIANTS))
        if isinstance(self.window, str) and self.window != "auto":
            raise VistokError(f"the window is a number of tokens or 'auto', not '{self.window}'.")
        _check_window(2 if self.window == "auto" else self.window, self.init)

    def tuned(self, model: nn.Module, params: SamplingParams, batch: int) -> SpeculativeJacobi | Autoregressive:
        """Returns the same sampler with the window that suits model and batch on this machine, measured once in a
        process; plain decoding where no window wins.

        Another window gives other images of the same distribution, so name the number to draw the same ones elsewhere.

        Args:
            model: the generator.
            params: with guidance, a pass has twice as many sequences.
            batch: images that are drawn together.
        """
        if self.window != "auto":
            return self
        known, key = _TUNED.setdefault(model, {}), (batch, params.guided)
        if key not in known:
            known[key] = best_window(forward_cost(model, params, batch))
        return self.with_window(known[key])

    def with_window(self, window: int) -> SpeculativeJacobi | Autoregressive:
        """Returns the same sampler with another window; plain decoding for a window of 1."""
        return Autoregressive() if window == 1 else replace(self, window=window)

    def parts(
        self, model: nn.Module, params: SamplingParams, batch: int
    ) -> tuple[JacobiWindow | NoDraft, ExactChain | Draw]:
        """Returns the window of drafts and the exact rule; plain decoding's where a measured window is 1."""
        if self.window == "auto":
            return self.tuned(model, params, batch).parts(model, params, batch)
        tokens, device = model.tokens, next(model.parameters()).device
        codes = torch.arange(tokens.size - tokens.special, device=device) if tokens.special else None
        coupled = self.variant == "coupled"
        nodes = max(2, min(self.window, tokens.length))  # rows behind the picture's end would decide nothing
        return JacobiWindow(nodes, tokens.line, self.init, coupled, vocabulary=codes), ExactChain()


def _check_window(nodes: int, init: str) -> None:
    if init not in INITS:
        raise unknown_name("initialisation", init, list(INITS))
    if nodes < 2:
        raise VistokError(
            f"a Jacobi window needs at least 2 rows, got {nodes}: use the sampler 'ar' to decode plainly."
        )
