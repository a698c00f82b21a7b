"""Exact verification of a chain of drafts (speculative sampling, arXiv 2211.17192 and 2302.01318)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops import draw
from vistok.ops.sampling import residual_law
from vistok.samplers.noise import ACCEPT, DRAW, RESIDUAL
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree
from vistok.samplers.verifiers.rules import RecursiveRejection
from vistok.samplers.verifiers.walk import walk_run


class Coupled(NamedTuple):
    """Outcome of the accept-or-residual rule."""

    token: Tensor  # the draft where accepted, else a draw from the residual, int64 [...]
    accepted: Tensor  # bool [...]


def couple(
    p: Tensor, q: Tensor, draft: Tensor, accept: Tensor, residual: Tensor, reprocess: SamplingParams | None = None
) -> Coupled:
    """Turns drafts that follow q into tokens that follow p, and changes as few as possible (the maximal coupling).

    A draft x is accepted with probability min(1, p(x) / q(x)), else replaced by a draw from norm(max(p - q, 0)).

    Args:
        p: target laws [..., V].
        q: laws that the drafts were drawn from, [..., V].
        draft: int64 [...].
        accept, residual: uniforms for the test and for the replacement, [...].
        reprocess: send the residual through this law's temperature, top-k and top-p once more, as published code does;
            that biases the result unless it leaves the residual as it is.
    """
    at = draft[..., None]
    accepted = accept * q.gather(-1, at).squeeze(-1) < p.gather(-1, at).squeeze(-1)  # no division: q may be 0
    rest = residual_law(p, q)
    if reprocess is not None:
        rest = reprocess.probabilities(rest.log())
    return Coupled(torch.where(accepted, draft, draw(rest, residual)), accepted)


def coupled_chain(tree: TokenTree, scores: Scores, run: Run, reprocess: SamplingParams | None = None) -> Verdict:
    """Judges a chain of drafts that were drawn from ``tree.laws``, all at a time; ``reprocess`` as of ``couple``.

    ``emitted`` holds the outcome of the rule at every position, also behind the first rejection.
    """
    p = run.params.probabilities(scores.logits)
    last = tree.nodes - 1
    outcome = couple(
        p[:, :last],
        tree.laws[:, :last],
        tree.tokens[:, 1:],
        run.window(tree.nodes, ACCEPT)[:, :last],
        run.window(tree.nodes, RESIDUAL)[:, :last],
        reprocess,
    )
    bonus = draw(p[:, last:], run.window(tree.nodes, DRAW)[:, last:])
    count = 1 + outcome.accepted.long().cumprod(1).sum(1)
    return Verdict(torch.cat([outcome.token, bonus], 1), count, probs=p)


class ExactChain:
    """Accepts the longest prefix of drafts that passes, and draws one more token: from the residual, or from the
    target's law where all drafts passed.

    Args:
        reprocess_residual: see ``couple``; the reference code of speculative Jacobi decoding does it.
    """

    accepts = frozenset({LawKind.INDEPENDENT, LawKind.WITHOUT_REPLACEMENT, LawKind.STALE})
    trees = False

    def __init__(self, reprocess_residual: bool = False):
        self.reprocess_residual = reprocess_residual
        self.lossless = not reprocess_residual

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Verifies a chain whose drafts were drawn from ``tree.laws``.

        Where the logits are processed along the path, the same rule is applied draft by draft, and ``probs`` is None.

        Raises:
            VistokError: residuals are to be processed again, and logits are processed along the path.
        """
        if run.stepwise:
            if self.reprocess_residual:
                raise VistokError(
                    "residuals are processed again in runs without logits processors and stopping criteria only: "
                    "leave reprocess_residual out."
                )
            return walk_run(tree, scores, run, RecursiveRejection(replacement=True))
        return coupled_chain(tree, scores, run, run.params if self.reprocess_residual else None)
