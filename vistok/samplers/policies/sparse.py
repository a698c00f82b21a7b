"""Dynamic sparse trees (PPD, arXiv 2405.18628): which candidates to check, and which of them look how far ahead.

A tree's nodes carry extra rows that predict what comes behind them. Only as many positions have candidates in the next
step as the node that was accepted last had predictions, its *state*, so there is a tree for each state.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops.tree import PADDING, ROOT
from vistok.samplers.policies.trees import Path, check_paths

Candidates = Sequence[tuple[Path, int]]  # the rank path of a node, and how far ahead its rows look
CANDIDATES = 10  # of a position, and nodes of the tree of state 1, as published


class SparseTrees:
    """The trees of all states, as tables with a row for each state.

    Args:
        trees: state to candidates; a state without a tree checks the root alone.
        ahead: positions that the root's rows look ahead.

    Attributes:
        parents, depth, rank: of the nodes, ordered by depth and path, padded with -2, -1 and 0; int64 [S, N].
        looks: how far ahead each node looks, int64 [S, N].
        first: number of each node's first prediction, int64 [S, N].
        attach, which: node and number (0 is the nearest) of each prediction, padded with -1 and 0; int64 [S, P].
        nodes, predictions: of each state, int64 [S].

    Raises:
        VistokError: a path whose beginning is missing or that is deeper than its state, or a node that looks further
            than the root.
    """

    def __init__(self, trees: Mapping[int, Candidates], ahead: int):
        self.ahead = ahead
        for state, tree in trees.items():
            check_paths([path for path, _ in tree])
            if not 1 <= state <= ahead or any(len(path) > state for path, _ in tree):
                raise VistokError(
                    f"the tree of state {state} is deeper than that, or the state not within 1 to {ahead}."
                )
            if any(not 0 <= looks <= ahead for _, looks in tree):
                raise VistokError(f"a node of the tree of state {state} looks further ahead than {ahead} positions.")
        rows = [self._row(dict(trees.get(state, ()))) for state in range(ahead + 1)]
        columns = zip(*rows, strict=True)
        fills = (PADDING, -1, 0, 0, 0, -1, 0)
        tables = (_padded(column, fill) for column, fill in zip(columns, fills, strict=True))
        self.parents, self.depth, self.rank, self.looks, self.first, self.attach, self.which = tables
        self.nodes = (self.parents != PADDING).sum(1)
        self.predictions = (self.attach >= 0).sum(1)

    def _row(self, looks: dict[Path, int]) -> tuple[list[int], ...]:
        paths = [(), *sorted(looks, key=lambda path: (len(path), path))]
        number = {path: i for i, path in enumerate(paths)}
        parents = [ROOT, *(number[path[:-1]] for path in paths[1:])]
        counts = [self.ahead, *(looks[path] for path in paths[1:])]
        first = [sum(counts[:i]) for i in range(len(counts))]
        attach = [node for node, count in enumerate(counts) for _ in range(count)]
        which = [number for count in counts for number in range(count)]
        ranks = [0, *(path[-1] for path in paths[1:])]
        return parents, [len(path) for path in paths], ranks, counts, first, attach, which

    @cached_property
    def width(self) -> int:
        """Candidates of a position that some tree asks for."""
        return 1 + int(self.rank.max())

    def rows(self, group: int = 1) -> int:
        """Most rows of a step, ``group`` for each prediction; a batch of several states has the most of both kinds."""
        return int(self.nodes.max() + group * self.predictions.max())

    def long_run(
        self, accuracy: Sequence[Sequence[float]], cost: Callable[[float], float], group: int = 1
    ) -> tuple[float, float]:
        """Tokens and seconds of a step in the stationary law of states.

        Args:
            accuracy: entry [d][r]: how often candidate r of depth d is right.
            cost: rows of a step to its seconds.
            group: rows of a prediction.
        """
        states = self.ahead + 1
        moves, tokens = np.zeros((states, states)), np.zeros(states)
        tables = (self.parents, self.depth, self.rank, self.looks)
        for state, rows in enumerate(zip(*(table.tolist() for table in tables), strict=True)):
            chances: list[float] = []
            for parent, depth, rank, looks in zip(*rows, strict=True):
                if parent == PADDING:
                    break
                right = 1.0 if parent == ROOT else chances[parent] * accuracy[depth - 1][rank]
                chances.append(right)
                moves[state, looks] += right
                if parent >= 0:  # the parent is then not the last one that was accepted
                    moves[state, rows[3][parent]] -= right
            tokens[state] = sum(chances)
        equations = moves.T - np.eye(states)
        equations[0] = 1  # that of state 0 follows from the others
        law = np.linalg.solve(equations, np.eye(states)[0])
        seconds = [cost(float(rows)) for rows in self.nodes + group * self.predictions]
        return float(law @ tokens), float(law @ np.array(seconds))

    def to(self, device: torch.device) -> SparseTrees:
        """Itself, with its tables on a device."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    @staticmethod
    def best(accuracy: Sequence[Sequence[float]], limit: int, first: int = CANDIDATES) -> SparseTrees:
        """The trees that ``best_sparse_trees`` finds."""
        found = best_sparse_trees(accuracy, limit, first)
        return SparseTrees({s: [(path, looks) for path, looks, _ in tree] for s, tree in found.items()}, len(accuracy))

    @staticmethod
    def chains(ahead: int) -> SparseTrees:
        """One candidate for each position, every node looking as far as the root."""
        return SparseTrees({s: [((0,) * d, ahead) for d in range(1, s + 1)] for s in range(1, ahead + 1)}, ahead)


def _padded(rows: Sequence[list[int]], fill: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


class SizedTrees:
    """The best trees of every state and size, for acceptances that depend on depth and rank alone.

    Args:
        accuracy: entry [d][r]: how often candidate r of depth d is right.
        most: largest size.
    """

    def __init__(self, accuracy: Sequence[Sequence[float]], most: int):
        self.ahead = len(accuracy)
        self.found: dict[int, list[tuple[Path, float]]] = {}
        for state in range(1, self.ahead + 1):
            values = _products(accuracy[:state])
            best = sorted(values, key=lambda pair: -pair[1])[:most]
            self.found[state] = [(path, round(value, 5)) for path, value in best]

    def value(self, state: int, size: int) -> float:
        """Expected drafts accepted."""
        return sum(value for _, value in self.found[state][:size])

    def ends(self, state: int, size: int) -> list[tuple[Path, float]]:
        """The nodes, best first, and how often each is the last one accepted."""
        nodes = self.found[state][:size]
        below: dict[Path, float] = {}
        for path, value in nodes:
            below[path[:-1]] = below.get(path[:-1], 0) + value
        return [(path, value - below.get(path, 0)) for path, value in nodes]


def _products(accuracy: Sequence[Sequence[float]], path: Path = (), value: float = 1.0) -> list[tuple[Path, float]]:
    """Every path below one, depth first, with the product of its accuracies."""
    if len(path) == len(accuracy):
        return []
    found = []
    for rank, chance in enumerate(accuracy[len(path)]):
        child = (*path, rank), value * float(chance)
        found += [child, *_products(accuracy, *child)]
    return found


def best_sparse_trees(
    accuracy: Sequence[Sequence[float]], limit: int, first: int = CANDIDATES
) -> dict[int, list[tuple[Path, int, float]]]:
    """The published search for the trees whose steps are accepted furthest, with at most so many rows below the root.

    Sizes of the trees behind that of state 1 are tried from limit / (m + 1) to limit / 2. Nodes lose
    predictions, the least missed first, until candidates and predictions fit; a node keeps one. (The root's m come on
    top, as published.) Of the sizes, those count that accept most in the long run of states.

    Args:
        accuracy: entry [d][r]: how often candidate r of depth d is right, d from 0 to m - 1.
        limit: rows of a step beside the root and its predictions.
        first: candidates of state 1, ten as published.

    Returns:
        Of each state its nodes, best first: rank path, how far it looks ahead, how often it is the last one accepted.

    Raises:
        VistokError: fewer than two rows for each candidate of state 1.
    """
    ahead, first = len(accuracy), min(first, len(accuracy[0]))
    least = max(2 * first, ahead + 1)
    if limit < least:
        raise VistokError(f"sparse trees need at least {least} rows, two for each candidate of state 1, got {limit}.")
    sized = SizedTrees(accuracy, limit)
    sizes = [(first,)]
    for _ in range(ahead - 1):
        sizes = [(*some, size) for some in sizes for size in range(limit // (ahead + 1), limit // 2 + 1)]
    best, most = {}, -np.inf
    for some in sizes:
        trees = _shortened(sized, some, limit)
        value = _long_run(sized, some, trees)
        if value > most:
            best, most = trees, value
    return best


def _shortened(sized: SizedTrees, sizes: tuple[int, ...], limit: int) -> dict[int, list[tuple[Path, int, float]]]:
    """Trees of these sizes, whose nodes look as far ahead as the limit allows."""
    values = [0.0, *(sized.value(state, size) for state, size in enumerate(sizes, 1))]
    found = {}
    for state, size in enumerate(sizes, 1):
        ends = sized.ends(state, size)
        looks = [sized.ahead] * len(ends)
        loss = [(chance * (values[-1] - values[-2]), node) for node, (_, chance) in enumerate(ends)]
        heapq.heapify(loss)
        for _ in range(len(ends) * sized.ahead - (limit - size)):
            if sized.ahead == 1 or not loss:
                break
            _, node = heapq.heappop(loss)
            looks[node] -= 1
            if looks[node] > 1:
                step = values[looks[node]] - values[looks[node] - 1]
                heapq.heappush(loss, (ends[node][1] * step, node))
        found[state] = [(path, look, chance) for (path, chance), look in zip(ends, looks, strict=True)]
    return found


def _long_run(sized: SizedTrees, sizes: tuple[int, ...], trees: dict[int, list[tuple[Path, int, float]]]) -> float:
    """Drafts accepted a step in the stationary law of states; behind a step that accepts none, the state is m."""
    ahead = sized.ahead
    moves = np.zeros((ahead + 1, ahead + 1))  # from, to; state 0 accepts nothing
    moves[0, ahead] = 1
    for state, tree in trees.items():
        for _, looks, chance in tree:
            moves[state, looks] += chance
        moves[state, 0] = 1 - moves[state, 1:].sum()
    equations = moves.T - np.eye(ahead + 1)
    equations[0] = 1  # that of state 0 follows from the others
    law = np.linalg.solve(equations, np.eye(ahead + 1)[0])
    return float(sum(law[state] * sized.value(state, size) for state, size in enumerate(sizes, 1)))
