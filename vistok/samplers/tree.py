"""Token trees: what a drafter proposes and a target scores in one forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from vistok.ops.tree import PADDING, ROOT, ancestor_mask


class LawKind(Enum):
    """How the children of a node were chosen, which decides what verifiers may assume of them."""

    INDEPENDENT = "drawn independently from the draft law"
    WITHOUT_REPLACEMENT = "drawn without replacement from the draft law"
    DETERMINISTIC = "picked by a rule, such as the most likely ones"
    STALE = "drawn from the target's law of an earlier pass"


@dataclass(frozen=True)
class TreeShape:
    """Who is whose child. Static trees build this once.

    Attributes:
        parents: index of every node's parent, smaller than its own; -1 for the root (node 0), -2 for a node that does
            not exist. int64 [B, N], or [1, N] for one shape in all sequences.
        chain: node i's parent is node i - 1, everywhere.
    """

    parents: Tensor
    chain: bool = False

    @staticmethod
    def chain_of(nodes: int, device: torch.device | str = "cpu") -> TreeShape:
        """The root and ``nodes - 1`` drafts, one behind the other."""
        return TreeShape(torch.arange(-1, nodes - 1, device=device)[None], chain=True)

    @staticmethod
    def of_paths(paths: list[tuple[int, ...]], device: torch.device | str = "cpu") -> TreeShape:
        """A static tree from its rank paths: ``(0, 2)`` is the third child of the root's first child.

        Nodes are numbered by depth, then by path; the root is node 0.
        """
        number = {(): 0} | {path: i + 1 for i, path in enumerate(sorted(paths, key=lambda p: (len(p), p)))}
        parents = [ROOT, *(number[path[:-1]] for path in list(number)[1:])]
        return TreeShape(torch.tensor([parents], device=device))

    @property
    def nodes(self) -> int:
        """Nodes N, the root included."""
        return self.parents.shape[1]

    @cached_property
    def ancestors(self) -> Tensor:
        """Entry (i, j): node j is i or above i. bool [B or 1, N, N]."""
        return ancestor_mask(self.parents)

    @cached_property
    def depth(self) -> Tensor:
        """Generations below the root, int64 [B or 1, N]; -1 for nodes that do not exist."""
        if self.chain:
            return torch.arange(self.nodes, device=self.parents.device)[None]
        return self.ancestors.sum(-1) - 1

    @cached_property
    def height(self) -> int:
        """Depth of the deepest node."""
        return self.nodes - 1 if self.chain else int(self.depth.max())

    @cached_property
    def rank(self) -> Tensor:
        """How many earlier siblings each node has, int64 [B or 1, N]."""
        siblings = (self.parents[:, :, None] == self.parents[:, None]) & (self.parents > PADDING)[..., None]
        return siblings.tril(-1).sum(-1)

    @cached_property
    def children(self) -> Tensor:
        """Children of every node in the order in which they are verified, -1 padded, int64 [B or 1, N, K]."""
        most = int(self.rank.max()) + 1
        batch, nodes = self.parents.shape
        table = self.parents.new_full((batch, nodes + 1, most), -1)  # the last row takes the root and padding
        owner = torch.where(self.parents >= 0, self.parents, nodes)
        index = torch.arange(nodes, device=table.device).expand(batch, -1)
        table[torch.arange(batch, device=table.device)[:, None], owner, self.rank] = index
        return table[:, :nodes]

    @cached_property
    def expanded(self) -> list[Tensor]:
        """Nodes that have children, depth by depth from the root, of a single shape."""
        parents = set(self.parents[0].tolist())
        levels: list[list[int]] = [[] for _ in range(self.height)]
        for node, depth in enumerate(self.depth[0].tolist()):
            if node in parents:
                levels[depth].append(node)
        return [torch.tensor(level, device=self.parents.device) for level in levels]

    @cached_property
    def paths(self) -> Tensor:
        """Root-to-leaf paths of a single shape, -1 padded, lexicographic with -1 last; int64 [P, height + 1]."""
        parents = self.parents[0].tolist()
        leaves = [i for i in range(self.nodes) if parents[i] != PADDING and i not in parents]
        found = []
        for leaf in leaves:
            path = [leaf]
            while parents[path[-1]] >= 0:
                path.append(parents[path[-1]])
            found.append(path[::-1] + [-1] * (self.height + 1 - len(path)))
        found.sort(key=lambda path: [self.nodes if node < 0 else node for node in path])
        return torch.tensor(found, device=self.parents.device)


@dataclass(frozen=True)
class TokenTree:
    """A draft.

    Attributes:
        tokens: int64 [B, N]; node 0, the root, is the last decided token, whose keys are not cached yet.
        shape: how the nodes hang together.
        kind: how the drafts were chosen.
        laws: ``laws[b, i]`` is the law that the children of node i were drawn from, [B, N, V]; None where there is
            none.
    """

    tokens: Tensor
    shape: TreeShape
    kind: LawKind = LawKind.DETERMINISTIC
    laws: Tensor | None = None

    @property
    def nodes(self) -> int:
        """Nodes N, the root included."""
        return self.tokens.shape[1]
