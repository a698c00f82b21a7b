"""The draft-verify loop: propose a token tree, score it in one target forward, keep what the verifier accepts.

Every sampler of the package is this loop with another drafter and verifier; plain autoregressive sampling is the loop
with empty drafts. Sequences of a batch accept different lengths and finish independently. The same for one sequence in
forty plain lines, which the loop is tested against: ``tests/samplers/reference.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Processing, Run, Scores, Stop, Verdict
from vistok.samplers.stats import Stats
from vistok.samplers.tree import LawKind, TokenTree


class Target(Protocol):
    """A model that drafts are checked against.

    Attributes:
        batch: sequences.
        length: tokens to decide in each.
    """

    batch: int
    length: int

    def prefill(self) -> Scores:
        """Run the condition. Logits [B, 1, V] of the first token, and the features of all conditioning tokens."""

    def forward(self, tree: TokenTree, decided: Tensor) -> Scores:
        """Score a tree whose root is token ``decided - 1`` of each sequence; ``decided`` int64 [B]."""

    def commit(self, verdict: Verdict, least: int, rows: int | None) -> None:
        """Keep the cache rows of the nodes that were kept and drop the others.

        Args:
            verdict: what was kept.
            least: every sequence has at least so many decided tokens now.
            rows: how many nodes every sequence keeps, where it is the same number; else None.
        """


class Drafter(Protocol):
    """Proposes token trees.

    Attributes:
        kind: how its drafts are chosen.
        chain: every tree is a chain.
        nodes: most nodes of a tree, the root and extra rows included.
    """

    kind: LawKind
    chain: bool
    nodes: int

    @property
    def forwards(self) -> int:
        """Calls of a draft network so far."""

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin a run, the first token of which is decided."""

    def propose(self, run: Run) -> TokenTree:
        """The next tree, rooted at the last decided token."""

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Learn what became of the tree; ``run.decided`` is still that of the tree's root."""


class Verifier(Protocol):
    """Decides what is kept of a tree.

    Attributes:
        accepts: kinds of drafts for which its rule is meant.
        trees: it judges trees; if not, chains only.
        lossless: the decided tokens follow the target's law exactly.

    A verifier that wants the target's final features in the scores of text says ``features = True`` as well.
    """

    accepts: frozenset[LawKind]
    trees: bool
    lossless: bool

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Judge a scored tree."""


def check_composition(drafter: Drafter, verifier: Verifier) -> None:
    """Refuse a verifier whose rule would bias the output with this drafter's kind of drafts.

    Raises:
        VistokError: the two do not go together.
    """
    if drafter.kind not in verifier.accepts:
        meant = ", or ".join(kind.value for kind in LawKind if kind in verifier.accepts)
        raise VistokError(
            f"{type(verifier).__name__} would bias the output with drafts that were {drafter.kind.value} "
            f"({type(drafter).__name__}): its rule holds for drafts {meant}."
        )
    if not (verifier.trees or drafter.chain):
        raise VistokError(
            f"{type(verifier).__name__} judges one candidate after the other, but {type(drafter).__name__} "
            "proposes trees: take a verifier of trees."
        )


@torch.inference_mode()
def decode(
    target: Target,
    drafter: Drafter,
    verifier: Verifier,
    params: SamplingParams,
    noise: Noise,
    progress: Callable[[int], None] | None = None,
    ends: Tensor | None = None,
    *,
    processing: Processing | None = None,
    stop: Stop | None = None,
    together: bool = False,
    watch: Callable[[Run], None] | None = None,
) -> tuple[Tensor, Stats]:
    """Decide all tokens of a batch.

    Args:
        target: the model; nothing was run on it yet.
        drafter: proposes trees.
        verifier: judges them.
        params: how logits become probabilities.
        noise: the random numbers of the run.
        progress: called after each step with the number of tokens that the slowest sample gained.
        ends: tokens that end a sample, int64 [E]; none if None.
        processing, stop, together: see ``Run``.
        watch: called when the first tokens are decided, and after each step.

    Returns:
        Tokens int64 [B, length], zero behind a sample's end, and the statistics of the run.

    Raises:
        VistokError: the verifier does not go with the drafter.
    """
    check_composition(drafter, verifier)
    began = time.perf_counter()
    prefill = target.prefill()
    limits = (target.length, drafter.nodes, ends, processing, stop, together)
    run = Run.begin(params, noise, prefill.logits[:, -1], *limits)
    drafter.start(run, prefill)
    if progress:
        progress(1)
    if watch:
        watch(run)
    while run.least < run.length:
        run.step += 1
        tree = drafter.propose(run)
        scores = target.forward(tree, run.decided)
        verdict = run.cut(verifier.verify(tree, scores, run))
        drafter.observe(run, tree, scores, verdict)
        before = run.least
        rows = run.record(tree, verdict)
        target.commit(verdict, run.least, rows)
        if progress and run.least > before:
            progress(run.least - before)
        if watch:
            watch(run)
    seconds = time.perf_counter() - began
    behind = torch.arange(run.length, device=run.final.device) >= run.final[:, None]
    tokens = run.tokens[:, : run.length].masked_fill(behind, 0)
    step_of = run.step_of[:, : run.length].masked_fill(behind, 0).cpu()
    return tokens, Stats(step_of, run.proposed.cpu(), drafter.forwards, seconds)
