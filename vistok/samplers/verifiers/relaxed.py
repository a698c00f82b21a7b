"""Relaxed verification by latent neighbours: LANTERN (arXiv 2410.03355) and LANTERN++ (arXiv 2502.06352).

Codes that lie close in the tokenizer's codebook look alike, so a draft may borrow the probability of its nearest codes.
For a draft x with neighbours n_1, n_2, ... the borrowed mass m_j = p(n_1) + ... + p(n_j) takes the largest j within a
bound: m_j <= delta (additive), or m_j <= (lambda - 1) p(x) (multiplicative, LANTERN++). m_j is the total variation
between p and the law p~ that has the mass moved onto x. With one deterministic draft and the published residual the
output law is exactly p~, so its total variation from p stays within delta; drafts that were sampled have no such bound.

The published residual is norm(max(p~ - q, 0)). The reference code clears the k + 1 nearest codes instead, however many
were borrowed from: of p for a deterministic draft, of q for a sampled one; ``residual="reference"`` does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError, unknown_name
from vistok.ops import draw
from vistok.ops.sampling import residual_law
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree
from vistok.samplers.verifiers.candidates import TreeVerifier
from vistok.samplers.verifiers.rules import State, none_rejected, without
from vistok.samplers.verifiers.walk import follow, kept_path, longest_path, pace, walk_tree

MODES = ("additive", "multiplicative")
RESIDUALS = ("paper", "reference")


def nearest_codes(codebook: Tensor, k: int, chunk: int = 1024) -> Tensor:
    """Returns the k nearest other codes of every code, by Euclidean distance, nearest first.

    Args:
        codebook: [V, D], as the tokenizer stores it.
        k: at most V - 1.
        chunk: rows whose distances are held at a time.

    Returns:
        int64 [V, k].

    Raises:
        VistokError: k is too large or negative.
    """
    size = len(codebook)
    if not 0 <= k < size:
        raise VistokError(f"a codebook of {size} codes has no {k} neighbours of each: take 0 to {size - 1}.")
    exact = codebook.double()
    rows = []
    for start in range(0, size, chunk):
        part = exact[start : start + chunk]
        distance = torch.cdist(part, exact, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(start, start + len(part), device=codebook.device)[:, None]
        distance.scatter_(1, own, torch.inf)
        rows.append(distance.sort(dim=1, stable=True).indices[:, :k])
    return torch.cat(rows)


class LatentNeighbours:
    """The rule that tests a candidate by its probability and what it borrows from its latent neighbours.

    Args:
        neighbours: the nearest codes of every code, int64 [V, k], and one column more for the reference residual.
        k: neighbours that may lend their mass; 0 makes the rule exact.
        bound: delta (additive) or lambda (multiplicative).
        mode: one of MODES.
        residual: one of RESIDUALS.
    """

    def __init__(self, neighbours: Tensor, k: int, bound: float, mode: str = "additive", residual: str = "paper"):
        self.neighbours, self.k, self.bound, self.mode, self.residual = neighbours, k, bound, mode, residual

    def borrowed(self, p: Tensor, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the probability that a draft borrows [B], the codes that are asked [B, k], and which of them lend [B,
        k].
        """
        near = self.neighbours[token, : self.k]
        mass = p.gather(1, near).cumsum(1)
        bound = self.bound
        if self.mode == "multiplicative":
            bound = (self.bound - 1) * p.gather(1, token[:, None])
        lends = mass <= bound
        return (p.gather(1, near) * lends).sum(1), near, lends

    def relaxed(self, p: Tensor, token: Tensor) -> Tensor:
        """Returns the probability p~(x) of the drafts under the relaxed law that they are tested by, [B]."""
        return p.gather(1, token[:, None])[:, 0] + self.borrowed(p, token)[0]

    def wins(self, p: Tensor, token: Tensor) -> Tensor:
        """Returns whether each draft is the most likely token once it has borrowed, bool [B]."""
        return p.scatter(1, token[:, None], self.relaxed(p, token)[:, None]).argmax(-1) == token

    def taken(self, tree: TokenTree, p: Tensor, drawn: Tensor) -> Tensor:
        """What drafts that a rule picked make of a draw from the target behind each node, all nodes at a time.

        A draft takes the draws of its own code and of its lenders, so it passes with the probability p~(x) of ``test``;
        what no child takes is distributed as the published residual. So this is the rule, by one draw a node.

        Args:
            tree: N nodes of each sample.
            p: the target's laws behind them, [B, N, V].
            drawn: int64 [B, N].

        Returns:
            Codes int64 [B, N]: that of the first child that takes the draw, else the draw.
        """
        children = tree.shape.children.expand(*drawn.shape, -1)
        wanted, rest, left, total, lenders = drawn, p, torch.ones_like(drawn, dtype=torch.bool), 1.0, None
        for child in children.unbind(-1):
            if lenders is not None:  # an earlier sibling was turned down, and who lent to it is out
                rest = rest.scatter(2, lenders, 0.0)
                total = rest.sum(2, keepdim=True)
            token = tree.tokens.gather(1, child.clamp(min=0))
            at, near = token[..., None], self.neighbours[token, : self.k]
            bound = self.bound * total if self.mode == "additive" else (self.bound - 1) * rest.gather(2, at)
            lends = rest.gather(2, near).cumsum(2) <= bound
            lenders = torch.cat([at, torch.where(lends, near, at)], 2)
            takes = (lenders == drawn[..., None]).any(2) & left & (child >= 0)
            wanted, left = torch.where(takes, token, wanted), left & ~takes
        return wanted

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        return (p,) if q is None else (p, q)

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        p, q = state if len(state) == 2 else (*state, None)
        mass, near, lends = self.borrowed(p, token)
        at = token[:, None]
        own = p.gather(1, at)[:, 0] + mass
        chance = torch.ones_like(own) if q is None else q.gather(1, at)[:, 0]
        accepted = (uniform * chance < own) & (chance > 0)
        if none_rejected(accepted):
            return accepted, state
        if self.residual == "reference":
            return accepted, self._reference(p, q, at, lends)
        lenders = torch.cat([at, torch.where(lends, near, at)], 1)
        if q is None:
            rest = without(p, lenders)
            return accepted, (torch.where(rest.sum(1, keepdim=True) > 0, rest, p),)
        moved = p.scatter(1, lenders, 0.0).scatter(1, at, own[:, None])
        return accepted, (residual_law(moved, q), without(q, at))

    def _reference(self, p: Tensor, q: Tensor | None, at: Tensor, lends: Tensor) -> State:
        near = self.neighbours[at[:, 0], : self.k + 1]
        any_lends = lends.any(1, keepdim=True)
        if q is None:
            rest = p.scatter(1, at, 0.0)
            rest = torch.where(any_lends, rest.scatter(1, near, 0.0), rest)
        else:
            rest = (p - torch.where(any_lends, q.scatter(1, near, 0.0), q)).clamp(min=0)
        total = rest.sum(1, keepdim=True)
        rest = torch.where(total > 0, rest / total.clamp(min=torch.finfo(p.dtype).tiny), 1 / p.shape[1])
        return (rest,) if q is None else (rest, without(q, at))

    def law(self, state: State) -> Tensor:
        return state[0]


class MostLikely:
    """The rule of greedy decoding: a draft passes if it is the most likely token once it has borrowed."""

    def __init__(self, neighbours: LatentNeighbours):
        self.neighbours = neighbours

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        return (p,)

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        (p,) = state
        return self.neighbours.wins(p, token), state

    def law(self, state: State) -> Tensor:
        return state[0]


class RelaxedTree(TreeVerifier):
    """Keeps the path that the relaxed rule accepts; lossy, unless nothing may be borrowed.

    With greedy decoding a draft passes if it is the most likely token once it has borrowed (at temperature 1, without
    top-k), and the longest path wins; where logits are processed along the path, the first child that passes.

    Args:
        neighbours, k, bound, mode, residual: see ``LatentNeighbours``.

    Raises:
        VistokError: unknown mode or residual, a bound out of its range, or a table of too few neighbours.
    """

    def __init__(self, neighbours: Tensor, k: int, bound: float, mode: str = "additive", residual: str = "paper"):
        check_relaxation(k, bound, mode, residual)
        needed = k + 1 if residual == "reference" and k else k
        if neighbours.shape[1] < needed:
            raise VistokError(
                f"the table holds {neighbours.shape[1]} neighbours of each code, but {needed} are needed."
            )
        nothing = k == 0 or bound == (0 if mode == "additive" else 1)
        kinds = frozenset({LawKind.DETERMINISTIC, LawKind.WITHOUT_REPLACEMENT})
        super().__init__(LatentNeighbours(neighbours, k, bound, mode, residual), kinds, nothing)

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Keeps the accepted path and draws one token behind it."""
        if not run.params.greedy:
            picked = tree.kind is LawKind.DETERMINISTIC and self.rule.residual == "paper"
            if picked and not run.stepwise and run.decided.device.type == "cpu":
                p = run.params.probabilities(scores.logits)
                drawn = draw(p, run.drawn_with(tree.shape.depth))
                return follow(tree, self.rule.taken(tree, p, drawn))
            return super().verify(tree, scores, run)
        if run.stepwise:
            return self._greedy_steps(tree, scores, run)
        p = scores.logits.softmax(-1)
        path = longest_path(tree.shape, self.greedy(tree, p))
        end = path.gather(1, (path >= 0).sum(1, keepdim=True) - 1)[:, 0]
        return kept_path(tree.tokens, path, p[torch.arange(len(p), device=p.device), end].argmax(-1))

    def _greedy_steps(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        no_draws = torch.zeros_like(tree.tokens[:, :1], dtype=torch.float64)
        walk = walk_tree(
            tree.shape,
            tree.tokens,
            lambda node: run.behind(tree, scores, node).softmax(-1),
            None,
            MostLikely(self.rule),
            no_draws,
            *pace(run),
        )
        return kept_path(tree.tokens, walk.path, walk.law.argmax(-1))

    def greedy(self, tree: TokenTree, p: Tensor) -> Tensor:
        """Returns which nodes are the most likely token behind their parent once they have borrowed, bool [B, N]."""
        parents = tree.shape.parents.expand_as(tree.tokens).clamp(min=0)
        rows = p.gather(1, parents[..., None].expand(-1, -1, p.shape[-1])).flatten(0, 1)
        return self.rule.wins(rows, tree.tokens.flatten()).view_as(tree.tokens)


def check_relaxation(k: int, bound: float, mode: str, residual: str) -> None:
    """Raise VistokError unless these options of LANTERN make sense together."""
    if mode not in MODES:
        raise unknown_name("mode of LANTERN", mode, list(MODES))
    if residual not in RESIDUALS:
        raise unknown_name("residual of LANTERN", residual, list(RESIDUALS))
    if k < 0:
        raise VistokError(f"LANTERN borrows from k >= 0 neighbours, got {k}.")
    if mode == "additive" and not 0 <= bound <= 1:
        raise VistokError(
            f"the additive bound is a total variation in [0, 1], got {bound}: for lambda use multiplicative."
        )
    if mode == "multiplicative" and bound < 1:
        raise VistokError(f"the multiplicative bound must be at least 1, which is exact, got {bound}.")
