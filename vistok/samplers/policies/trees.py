"""Static draft trees: the published ones, and the best tree of a size for measured acceptances."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from vistok.errors import VistokError

Path = tuple[int, ...]


def rank_paths(children: dict[Path, int]) -> tuple[Path, ...]:
    """All rank paths of a tree, from how many children its nodes have; the root is ``()``."""
    return tuple((*parent, rank) for parent, count in children.items() for rank in range(count))


STATIC_TREES: dict[str, tuple[Path, ...]] = {
    # LANTERN++'s default for LlamaGen and Anole: 57 nodes, 5 levels.
    "naive_extend_57": rank_paths(
        {
            (): 5,
            **{(0,): 4, (1,): 3, (2,): 3, (3,): 2, (4,): 1},
            **{(0, 0): 4, (0, 1): 3, (0, 2): 3, (0, 3): 2, (1, 0): 2, (1, 1): 1, (2, 0): 1},
            **{(0, 0, 0): 4, (0, 0, 1): 3, (0, 0, 2): 2, (0, 0, 3): 1, (0, 1, 0): 2, (0, 1, 1): 1, (0, 2, 0): 1},
            **{(0, 0, 0, 0): 3, (0, 0, 0, 1): 2, (0, 0, 1, 0): 2, (0, 0, 1, 1): 1, (0, 0, 2, 0): 1},
        }
    ),
    # EAGLE-1's: 25 nodes, whatever its name says.
    "mc_sim_7b_63": rank_paths(
        {
            (): 4,
            **{(0,): 3, (1,): 2, (2,): 2, (3,): 1},
            **{(0, 0): 3, (0, 1): 2, (0, 2): 2, (1, 0): 1},
            **{(0, 0, 0): 3, (0, 0, 0, 0): 2},
        }
    ),
    "chain": rank_paths({(0,) * depth: 1 for depth in range(5)}),
}

# Token Recycling's template 2.2.2: 80 nodes in 6 levels.
TREE_2_2_2: tuple[Path, ...] = rank_paths(
    {
        (): 8,
        **{(0,): 8, (1,): 4, (2,): 3, (3,): 2, (4,): 1, (5,): 1, (6,): 1, (7,): 1},
        **{(0, 0): 8, (0, 1): 3, (0, 2): 2, (0, 3): 1, (0, 4): 1, (0, 5): 1, (0, 6): 1, (0, 7): 1},
        **{(1, 0): 2, (1, 1): 1, (2, 0): 1, (3, 0): 1, (4, 0): 1, (5, 0): 1},
        **{(0, 0, 0): 5, (0, 0, 1): 2, (0, 0, 2): 1, (0, 0, 3): 1, (0, 0, 4): 1},
        **{(0, 1, 0): 1, (0, 2, 0): 1, (1, 0, 0): 1, (2, 0, 0): 1, (3, 0, 0): 1},
        **{(0, 0, 0, 0): 3, (0, 0, 0, 1): 1, (0, 0, 0, 2): 1, (0, 0, 1, 0): 1, (0, 1, 0, 0): 1, (1, 0, 0, 0): 1},
        **{(0, 0, 0, 0, 0): 2, (0, 0, 0, 1, 0): 1},
    }
)


def ranked_paths(accuracy: Sequence[Sequence[float]], drafts: int) -> list[tuple[Path, float]]:
    """The nodes that are accepted most often, if acceptance depends on depth and rank alone.

    A node is worth the product of the accuracies along its path, so the best nodes form a tree, and so do the first of
    them.

    Args:
        accuracy: entry [d][r]: how often candidate r of a node at depth d is right; falling in r.
        drafts: nodes at most.

    Returns:
        Rank paths and how often they are right, best first.
    """
    found: list[tuple[Path, float]] = []
    heap: list[tuple[float, Path]] = [(-accuracy[0][0], (0,))]
    while heap and len(found) < drafts:
        value, path = heapq.heappop(heap)
        found.append((path, -value))
        depth, rank = len(path) - 1, path[-1]
        if rank + 1 < len(accuracy[depth]) and accuracy[depth][rank] > 0:
            heapq.heappush(heap, (value / accuracy[depth][rank] * accuracy[depth][rank + 1], (*path[:-1], rank + 1)))
        if len(path) < len(accuracy):
            heapq.heappush(heap, (value * accuracy[depth + 1][0], (*path, 0)))
    return found


def best_tree(accuracy: Sequence[Sequence[float]], drafts: int) -> tuple[Path, ...]:
    """The rank paths of ``ranked_paths``: the tree of so many drafts that is accepted furthest."""
    return tuple(path for path, _ in ranked_paths(accuracy, drafts))


def check_paths(paths: Sequence[Path]) -> None:
    """Raise VistokError unless every path's parent and earlier siblings are there too."""
    known = {(), *paths}
    for path in paths:
        if path[:-1] not in known or (path[-1] and (*path[:-1], path[-1] - 1) not in known):
            raise VistokError(f"the tree has the path {list(path)} without its parent or an earlier sibling: add them.")
    if not paths:
        raise VistokError("the tree has no node below its root: give at least the path (0,).")
