"""Paths through token trees: along a rule's tests, along draws from the target, or the longest that passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from vistok.ops import draw
from vistok.samplers.noise import ACCEPT, RESIDUAL
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree, TreeShape
from vistok.samplers.verifiers.rules import Rule

# Nodes [B], one of each tree, to the target's laws behind them [B, V]; node -1 asks nothing: its row may be anything.
Laws = Callable[[Tensor], Tensor]
# The level of a path, tokens [B] there, which trees asked for one and which accepted theirs, bool [B]: to those that
# decide the token without a look behind it, see ``Run.halts``.
Halts = Callable[[int, Tensor, Tensor, Tensor], Tensor]
IMPOSSIBLE = -1e4  # log probability of what has none: finite, so that sums over paths stay numbers


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
    """Follows each tree from the root, testing the children of the current node in order, until none is accepted.

    Args:
        shape: of the trees.
        tokens: int64 [B, N].
        laws: gives the target's law behind one node of each tree; it is called for nodes on the path only.
        q: laws that each node's children were drawn from, [B, N, V]; None for rules that need none.
        rule: the test.
        uniforms: one for each test, used in order, [B, M].
        going: trees that are walked at all, bool [B]; all if None.
        halts: ends walks early; there the returned ``law`` gives the token accepted last probability 1.
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
    """Draws from the target at each node and follows the child that carries the token that was drawn.

    Args:
        shape, tokens, going, halts: as in ``walk_tree``.
        draws: draws a token [B] from the target's law behind one node of each tree, given nodes [B] and their depth;
            node -1 asks nothing.

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
    """Returns the verdict of greedy decoding, on the CPU: ``match_tree`` without tensor operations for each level.

    Args:
        tree: the drafts.
        wanted: the target's most likely token behind each node, int64 [B, N].
    """
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


def longest_path(shape: TreeShape, passed: Tensor, chance: Tensor | None = None) -> Tensor:
    """Returns the longest path on which every node but the root passed.

    Args:
        shape: of the trees.
        passed: bool [B, N].
        chance: probability of each node behind its parent, [B, N], by which the likeliest of equally long paths is
            taken; the first one if None.

    Returns:
        Path int64 [B, height + 1], padded with -1.
    """
    batch, nodes = passed.shape
    ancestors, depth = shape.ancestors.expand(batch, -1, -1), shape.depth.expand(batch, -1)
    failed = ~passed.bool()
    failed[:, 0] = False
    whole = ~(ancestors & failed[:, None]).any(-1) & ancestors[..., 0]  # padding has no ancestor
    reach = torch.where(whole, depth, -1)
    if chance is None:
        end = reach.argmax(1)
    else:
        steps = chance.log().nan_to_num(neginf=IMPOSSIBLE)
        steps[:, 0] = 0
        likelihood = (ancestors * steps[:, None]).sum(-1)
        end = likelihood.masked_fill(reach < reach.amax(1, keepdim=True), -torch.inf).argmax(1)
    on = ancestors.gather(1, end[:, None, None].expand(-1, 1, nodes))[:, 0]
    path = torch.full((batch, shape.height + 2), -1, dtype=torch.int64, device=passed.device)
    places = torch.where(on, depth, shape.height + 1)  # the last column takes what is not on the path
    path.scatter_(1, places, torch.arange(nodes, device=passed.device).expand(batch, -1))
    return path[:, :-1]


def kept_path(tokens: Tensor, path: Tensor, token: Tensor) -> Verdict:
    """Returns the verdict that keeps a path of drafts and decides one token behind it.

    Args:
        tokens: of the tree, int64 [B, N].
        path: nodes, root first, padded with -1, int64 [B, height + 1].
        token: behind the path, int64 [B].
    """
    count = (path >= 0).sum(1)
    emitted = tokens.gather(1, path[:, 1:].clamp(min=0))
    emitted = torch.cat([emitted, token[:, None]], 1).scatter(1, count[:, None] - 1, token[:, None])
    return Verdict(emitted, count, path)


def pace(run: Run) -> tuple[Tensor | None, Halts | None]:
    """Returns ``going`` and ``halts`` of a walk: None unless a step of the run may end before its tree does."""
    return (run.decided < run.length, run.halts) if run.stepwise else (None, None)


def walk_run(tree: TokenTree, scores: Scores, run: Run, rule: Rule, spared: Tensor | None = None) -> Verdict:
    """Walks the tree of a run by a rule, and draws one token behind the accepted path; see ``walk_tree``."""
    root = torch.zeros(1, dtype=torch.int64, device=tree.tokens.device)
    if tree.nodes == 1 and not run.stepwise:  # nothing was drafted
        law = run.params.probabilities(run.behind(tree, scores, root.expand(len(tree.tokens))))
        token = draw(law, run.uniform(root, RESIDUAL)[:, 0])
        return Verdict(token[:, None], torch.ones_like(token))
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
