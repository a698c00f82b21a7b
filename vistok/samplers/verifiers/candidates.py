"""Verification of token trees: several candidates for a position, tested one after the other along the accepted path.

Rules: recursive rejection over candidates drawn with replacement (SpecInfer, arXiv 2305.09781) or without (RSD, arXiv
2402.14160); its case of candidates that a rule picked (EAGLE-2, arXiv 2406.16858); k-sequential selection (SpecTr,
arXiv 2310.15141). And sample-and-match, which draws from the target and follows the child that was drawn: right for any
tree that was fixed beforehand, in the same law as the one-hot rule, with one draw for a level.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vistok.ops import draw
from vistok.ops.sampling import residual_law
from vistok.samplers.loop import Run, Scores, Verdict
from vistok.samplers.noise import ACCEPT, RESIDUAL
from vistok.samplers.tree import LawKind, TokenTree, TreeShape

DRAWN_AT_ONCE = 1 << 14  # logits of a tree up to which a draw behind every node costs less than a call for each level
State = tuple[Tensor, ...]
# Nodes [B], one of each tree, to the target's laws behind them [B, V]; node -1 asks nothing: its row may be anything.
Laws = Callable[[Tensor], Tensor]
# The level of a path, tokens [B] there, which trees asked for one and which accepted theirs, bool [B]: to those that
# decide the token without a look behind it, see ``Run.halts``.
Halts = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Rule(Protocol):
    """How the candidates of one node are tested. A state holds tensors that begin with the batch axis."""

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        """The state before the first test: laws p, q [B, V] of the target and the draft; how many of the candidates to
        come were drawn from q, [B].
        """

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        """Test the next candidate, int64 [B], with a uniform [B]: accepted bool [B], and the state if it is not."""

    def law(self, state: State) -> Tensor:
        """Law [B, V] of the token if no candidate was accepted."""


def none_rejected(accepted: Tensor) -> bool:
    """Whether no test was lost, so that the state after a rejection is asked for by nobody; known on a CPU alone."""
    return accepted.device.type == "cpu" and bool(accepted.all())


class RecursiveRejection:
    """Test each candidate by p against q; after a rejection go on with norm(max(p - q, 0)).

    Args:
        replacement: candidates were drawn independently; else a rejected one leaves the draft law.
    """

    def __init__(self, replacement: bool):
        self.replacement = replacement

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        return p, q

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        p, q = state
        at = token[:, None]
        chance = q.gather(1, at)[:, 0]
        # A law that ran out of tokens to draw without replacement fills up with tokens of probability 0: no drafts.
        accepted = (uniform * chance < p.gather(1, at)[:, 0]) & (chance > 0)
        if none_rejected(accepted):
            return accepted, state
        rest = residual_law(p, q)
        if not self.replacement:
            q = without(q, at)
        return accepted, (rest, q)

    def law(self, state: State) -> Tensor:
        return state[0]


class OneHot:
    """Accept a candidate with its target probability; a rejected one leaves the target's law."""

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        return (p,)

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        (p,) = state
        at = token[:, None]
        return uniform < p.gather(1, at)[:, 0], (without(p, at),)

    def law(self, state: State) -> Tensor:
        return state[0]


class MixedRejection(RecursiveRejection):
    """Test what was drawn without replacement as ``RecursiveRejection`` does, and what a rule picked then as ``OneHot``
    does, on the law that the former left.
    """

    def __init__(self):
        super().__init__(replacement=False)

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        return p, q, candidates

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        p, q, left = state
        at, drawn = token[:, None], (left > 0)[:, None]
        accepted, (rest, others) = super().test((p, q), token, uniform)
        picked = uniform < p.gather(1, at)[:, 0]
        rest = torch.where(drawn, rest, without(p, at))
        return torch.where(drawn[:, 0], accepted, picked), (rest, torch.where(drawn, others, q), left - 1)


class KSequential:
    """Accept each of k independent candidates with probability min(1, p(x) / (rho q(x))), rho by bisection."""

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        rho, beta, accepted = k_sequential(p, q, candidates)
        return p, q, rho, beta, accepted

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        p, q, rho, *_ = state
        at = token[:, None]
        return uniform * rho * q.gather(1, at)[:, 0] < p.gather(1, at)[:, 0], state

    def law(self, state: State) -> Tensor:
        p, q, rho, beta, accepted = state
        rest = (p - torch.minimum(q, p / rho[:, None]) * (accepted / beta.clamp(min=1e-300))[:, None]).clamp(min=0)
        total = rest.sum(1, keepdim=True)
        return torch.where(total > 0, rest / total.clamp(min=torch.finfo(rest.dtype).tiny), p)


def k_sequential(p: Tensor, q: Tensor, candidates: Tensor, rounds: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """SpecTr's division factor for k independent candidates of each row.

    Args:
        p, q: laws of the target and the draft, [B, V].
        candidates: k, int64 [B].
        rounds: of the bisection.

    Returns:
        rho, the smallest factor in [1, k] whose residual is no negative law; beta = sum of min(q, p / rho), the chance
        that one candidate passes; and 1 - (1 - beta)^k, that any does. [B] each, float64.
    """
    p, q, k = p.double(), q.double(), candidates.double()

    def passing(rho: Tensor) -> Tensor:
        return torch.minimum(q, p / rho[:, None]).sum(1)

    def excess(rho: Tensor) -> Tensor:
        beta = passing(rho)
        return 1 - (1 - beta) ** k - rho * beta  # decreasing in rho

    low, high = torch.ones_like(k), k.clamp(min=1)
    high = torch.where(excess(low) <= 0, low, high)
    for _ in range(rounds):
        middle = (low + high) / 2
        above = excess(middle) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    beta = passing(high)
    return high, beta, 1 - (1 - beta) ** k


def without(law: Tensor, token: Tensor) -> Tensor:
    """A law [B, V] without the tokens [B, m], made to sum to one; all zero where nothing is left."""
    rest = law.scatter(1, token, 0.0)
    return rest / rest.sum(1, keepdim=True).clamp(min=torch.finfo(law.dtype).tiny)


class Walk(NamedTuple):
    """The path that was accepted in each tree."""

    path: Tensor  # nodes, root first, padded with -1, int64 [B, height + 1]
    count: Tensor  # nodes on it, int64 [B]
    law: Tensor  # of the token behind it, [B, V]
    tests: Tensor  # uniforms that were used, int64 [B]


def walk_tree(
    shape: TreeShape,
    tokens: Tensor,
    laws: Laws,
    q: Tensor | None,
    rule: Rule,
    uniforms: Tensor,
    going: Tensor | None = None,
    halts: Halts | None = None,
    drawn: Tensor | None = None,
    spared: Tensor | None = None,
) -> Walk:
    """Follow each tree from the root, testing the children of the current node in order, until none is accepted.

    Args:
        shape: of the trees.
        tokens: int64 [B, N].
        laws: the target's law behind one node of each tree; only nodes on the path are asked for.
        q: laws that each node's children were drawn from, [B, N, V]; None for rules that need none.
        rule: the test.
        uniforms: one for each test, used in order, [B, M].
        going: trees that are walked at all, bool [B]; all if None.
        halts: ends walks early; where it does, ``law`` is certain of the token that was accepted last.
        drawn: how many of each node's children were drawn from ``q``, int64 [B, N]; all if None.
        spared: nodes that are accepted whatever the rule says, bool [B, N]; none if None.
    """
    batch = len(tokens)
    here = torch.arange(batch, device=tokens.device)
    children = shape.children.expand(batch, -1, -1)
    node = torch.zeros_like(here)
    path = torch.full((batch, shape.height + 1), -1, dtype=torch.int64, device=tokens.device)
    path[:, 0] = 0
    tests = torch.zeros_like(here)
    alive = torch.ones_like(here, dtype=torch.bool) if going is None else going
    p = law = laws(torch.where(alive, node, -1))
    host = tokens.device.type == "cpu"  # asking whether to go on costs nothing there
    for level in range(1, shape.height + 1):
        candidates = children[here, node]
        from_q = (candidates >= 0).sum(1) if drawn is None else drawn[here, node]
        state = rule.enter(p, None if q is None else q[here, node], from_q)
        moved = torch.zeros_like(alive)
        for rank in range(children.shape[2]):
            child = candidates[:, rank]
            testing = alive & ~moved & (child >= 0)
            if host and not testing.any():
                break
            token = tokens[here, child.clamp(min=0)]
            accepted, rejected = rule.test(state, token, uniforms[here, tests.clamp(max=uniforms.shape[1] - 1)])
            if spared is not None:
                accepted = accepted | spared[here, child.clamp(min=0)]
            tests = tests + testing
            state = tuple(
                torch.where((testing & ~accepted).view(-1, *[1] * (old.ndim - 1)), new, old)
                for new, old in zip(rejected, state, strict=True)
            )
            took = testing & accepted
            node = torch.where(took, child, node)
            moved = moved | took
        law = torch.where((alive & ~moved)[:, None], rule.law(state), law)
        if halts is not None:
            token = tokens[here, node]
            stopped = halts(level, token, alive, moved)
            law = torch.where(stopped[:, None], one_hot(token, law.shape[1]).to(law), law)
            moved = moved & ~stopped
        path[:, level] = torch.where(moved, node, -1)
        alive = moved
        if host and not alive.any():
            break
        p = laws(torch.where(alive, node, -1))
        law = torch.where(alive[:, None], p, law)
    return Walk(path, (path >= 0).sum(1), law, tests)


def match_tree(
    shape: TreeShape,
    tokens: Tensor,
    draws: Callable[[Tensor, int], Tensor],
    going: Tensor | None = None,
    halts: Halts | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw from the target at each node and follow the child that carries the token that was drawn.

    Args:
        shape, tokens, going, halts: as in ``walk_tree``.
        draws: a draw [B] from the target's law behind one node of each tree, given nodes [B] and their depth; node -1
            asks nothing.

    Returns:
        Path int64 [B, height + 1] padded with -1, and the token behind it, int64 [B].
    """
    batch = len(tokens)
    here = torch.arange(batch, device=tokens.device)
    children = shape.children.expand(batch, -1, -1)
    node = torch.zeros_like(here)
    alive = torch.ones_like(here, dtype=torch.bool) if going is None else going
    path = torch.full((batch, shape.height + 1), -1, dtype=torch.int64, device=tokens.device)
    path[:, 0] = 0
    wanted = draws(torch.where(alive, node, -1), 0)
    for level in range(1, shape.height + 1):
        candidates = children[here, node]
        same = (tokens.gather(1, candidates.clamp(min=0)) == wanted[:, None]) & (candidates >= 0)
        moved = alive & same.any(1)
        if halts is not None:
            moved = moved & ~halts(level, wanted, alive, moved)
        alive = moved
        if tokens.device.type == "cpu" and not alive.any():
            break
        node = torch.where(alive, candidates[here, same.long().argmax(1)], node)
        path[:, level] = torch.where(alive, node, -1)
        wanted = torch.where(alive, draws(torch.where(alive, node, -1), level), wanted)
    return path, wanted


def follow(tree: TokenTree, wanted: Tensor) -> Verdict:
    """What ``match_tree`` finds if each node has drawn its token already, int64 [B, N], without a tensor a level."""
    batch, nodes = wanted.shape
    if tree.shape.chain:
        same = (wanted[:, :-1] == tree.tokens[:, 1:]).long().cumprod(1)
        return Verdict(wanted, 1 + same.sum(1))
    parents = tree.shape.parents.expand(batch, -1).tolist()
    paths, emitted = [], []
    for row, best, above in zip(tree.tokens.tolist(), wanted.tolist(), parents, strict=True):
        child = {(above[node], row[node]): node for node in range(nodes - 1, 0, -1)}  # the first of equal ones counts
        path, node = [], 0
        while node is not None:
            path.append(node)
            node = child.get((node, best[node]))
        paths.append(path)
        emitted.append([best[node] for node in path])
    count = [len(path) for path in paths]
    width = max(count)
    filled = (
        [part + [-1] * (width - len(part)) for part in paths],
        [part + [0] * (width - len(part)) for part in emitted],
    )
    path, tokens, kept = (torch.tensor(part, dtype=torch.int64) for part in (*filled, count))
    return Verdict(tokens, kept, path)


def longest_path(shape: TreeShape, passed: Tensor) -> Tensor:
    """The longest path on which every node but the root passed; the first of the longest.

    Args:
        shape: of the trees.
        passed: bool [B, N].

    Returns:
        Path int64 [B, height + 1], padded with -1.
    """
    batch, nodes = passed.shape
    ancestors = shape.ancestors.expand(batch, -1, -1)
    failed = ~passed
    failed[:, 0] = False
    whole = ~(ancestors & failed[:, None]).any(-1) & ancestors[..., 0]  # padding has no ancestor
    depth = torch.where(whole, shape.depth.expand(batch, -1), -1)
    end = depth.argmax(1)  # the first of the deepest
    on = ancestors.gather(1, end[:, None, None].expand(-1, 1, nodes))[:, 0]
    path = torch.full((batch, shape.height + 2), -1, dtype=torch.int64, device=passed.device)
    places = torch.where(on, shape.depth.expand(batch, -1), shape.height + 1)  # the last column takes what is not on it
    path.scatter_(1, places, torch.arange(nodes, device=passed.device).expand(batch, -1))
    return path[:, :-1]


def kept_path(tokens: Tensor, path: Tensor, token: Tensor) -> Verdict:
    """The verdict that keeps a path and decides one token behind it."""
    count = (path >= 0).sum(1)
    emitted = tokens.gather(1, path[:, 1:].clamp(min=0))
    emitted = torch.cat([emitted, token[:, None]], 1).scatter(1, count[:, None] - 1, token[:, None])
    return Verdict(emitted, count, path)


def pace(run: Run) -> tuple[Tensor | None, Halts | None]:
    """Who walks, and where walks end before the tree does, in a run that must go step by step."""
    return (run.decided < run.length, run.halts) if run.stepwise else (None, None)


def walk_run(tree: TokenTree, scores: Scores, run: Run, rule: Rule, spared: Tensor | None = None) -> Verdict:
    """Walk the tree of a run by a rule, and draw one token behind the accepted path; see ``walk_tree``."""
    root = torch.zeros(1, dtype=torch.int64, device=tree.tokens.device)
    most = torch.arange(tree.shape.height * tree.shape.children.shape[2], device=root.device)
    walk = walk_tree(
        tree.shape,
        tree.tokens,
        lambda node: run.params.probabilities(run.behind(tree, scores, node)),
        None if tree.kind is LawKind.DETERMINISTIC else tree.laws,
        rule,
        run.uniform(root, ACCEPT, most),
        *pace(run),
        tree.drawn,
        spared,
    )
    return kept_path(tree.tokens, walk.path, draw(walk.law, run.uniform(root, RESIDUAL)[:, 0]))


class TreeVerifier:
    """Tests the candidates of a tree by a rule.

    Args:
        rule: the test.
        accepts: kinds of drafts that the rule is meant for.
        lossless: whether it keeps the target's law.
    """

    trees = True

    def __init__(self, rule: Rule, accepts: frozenset[LawKind], lossless: bool = True):
        self.rule, self.accepts, self.lossless = rule, accepts, lossless

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Keep the accepted path and draw one token behind it."""
        return walk_run(tree, scores, run, self.rule)


class SampleMatch:
    """Keeps the path that sampling from the target follows through the tree.

    Each position is drawn once, with the uniform that plain decoding draws it with, so whatever the drafts are, the
    tokens are those of plain decoding with the same seed.
    """

    accepts = frozenset(LawKind) - {LawKind.STALE}
    trees = True
    lossless = True

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Draw along the tree."""
        if tree.nodes == 1 and not run.stepwise:
            uniform = run.draws.gather(1, run.decided[:, None].clamp(max=run.length - 1))[:, 0]
            token = run.params.draw(scores.logits[:, 0], uniform)
            return Verdict(token[:, None], torch.ones_like(token))
        if run.params.greedy and not run.stepwise and tree.tokens.device.type == "cpu":
            return follow(tree, scores.logits.argmax(-1))
        drawn = None
        if run.processing is None and scores.logits[0].numel() <= DRAWN_AT_ONCE:
            uniforms = run.drawn_with(tree.shape.depth)
            drawn = run.params.draw(scores.logits.flatten(0, 1), uniforms.flatten()).view_as(tree.tokens)
            if not run.stepwise and drawn.device.type == "cpu":
                return follow(tree, drawn)
        uniforms = run.drawn_with(torch.arange(tree.shape.height + 1, device=run.decided.device))

        def draws(node: Tensor, level: int) -> Tensor:
            if drawn is not None:
                return drawn.gather(1, node.clamp(min=0)[:, None])[:, 0]
            return run.params.draw(run.behind(tree, scores, node), uniforms[:, level])

        return kept_path(tree.tokens, *match_tree(tree.shape, tree.tokens, draws, *pace(run)))


def exact_rule(kind: LawKind) -> Rule:
    """The lossless rule of one candidate after the other for a kind of drafts that was not drawn from stale laws."""
    if kind is LawKind.DETERMINISTIC:
        return OneHot()
    return MixedRejection() if kind is LawKind.MIXED else RecursiveRejection(kind is LawKind.INDEPENDENT)


def exact_tree(kind: LawKind) -> TreeVerifier | SampleMatch:
    """The lossless verifier of trees that accepts most for a kind of drafts."""
    if kind in (LawKind.INDEPENDENT, LawKind.WITHOUT_REPLACEMENT, LawKind.MIXED):
        return TreeVerifier(exact_rule(kind), frozenset({kind}))
    return SampleMatch()
