"""Published static draft trees, as the number of children of each node that has any."""

from __future__ import annotations

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
