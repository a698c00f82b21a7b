"""Token trees: what a drafter proposes and a target scores in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
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
    MIXED = "drawn without replacement from the draft law, then picked by a rule"
    STALE = "drawn from the target's law of an earlier pass"


@dataclass(frozen=True)
class TreeShape:
    """The parents of the nodes of a tree, for each sequence of a batch or for all of them. A static tree builds it
    once.

    Attributes:
        parents: index of every node's parent, smaller than its own; -1 for the root (node 0), -2 for a node that does
            not exist. int64 [B, N], or [1, N] for one shape in all sequences.
        chain: node i's parent is node i - 1, everywhere.
    """

    parents: Tensor
    chain: bool = False

    @staticmethod
    def chain_of(nodes: int, device: torch.device | str = "cpu") -> TreeShape:
        """Returns the shape of a chain: the root and ``nodes - 1`` drafts, each the child of the one before."""
        return TreeShape(torch.arange(-1, nodes - 1, device=device)[None], chain=True)

    @staticmethod
    def of_paths(paths: list[tuple[int, ...]], device: torch.device | str = "cpu") -> TreeShape:
        """Returns a static tree from its rank paths: ``(0, 2)`` is the third child of the root's first child.

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
        """Whether node j is node i or one of its ancestors, at entry (i, j): bool [B or 1, N, N]."""
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
        """Nodes that have children, a tensor for each depth from the root on; of a shape that all sequences share."""
        parents = set(self.parents[0].tolist())
        levels: list[list[int]] = [[] for _ in range(self.height)]
        for node, depth in enumerate(self.depth[0].tolist()):
            if node in parents:
                levels[depth].append(node)
        return [torch.tensor(level, device=self.parents.device) for level in levels]

    @cached_property
    def paths(self) -> Tensor:
        """Root-to-leaf paths of a shape that all sequences share, int64 [P, height + 1]: padded with -1, in
        lexicographic order with -1 last.
        """
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
class ExtraRows:
    """M rows of each sequence that a target forwards beside the nodes of a tree, and that never enter its cache.

    Each hangs on a node: it sees what that node sees, the node, and the extra rows that ``sees`` names. Nodes see none.

    Attributes:
        attach: the nodes, int64 [B or 1, M]; -1 for a row that does not exist.
        offset: positions behind that node, int64 [B or 1, M].
        sees: entry (i, j): row i sees row j; bool [B or 1, M, M], true where i = j.
        states: what the rows enter with [B, M, H], from the states of their nodes in front of that layer, [B, M, H].
        layer: the decoder layer that they enter in front of; 0 for the place of token embeddings. What the layers
            before make of them is thrown away.
    """

    attach: Tensor
    offset: Tensor
    sees: Tensor
    states: Callable[[Tensor], Tensor]
    layer: int = 0

    @property
    def count(self) -> int:
        """Rows M."""
        return self.attach.shape[1]

    def enter(self, states: Tensor, nodes: int) -> Tensor:
        """Returns states [B, N + M, H] of nodes and extra rows, with those that the extra rows enter with put in."""
        at = self.attach.clamp(min=0)[..., None].expand(len(states), -1, states.shape[-1])
        entering = self.states(states[:, :nodes].gather(1, at))
        return torch.cat([states[:, :nodes], entering.to(states.dtype)], 1)


@dataclass(frozen=True)
class TokenTree:
    """A draft: a token tree with the laws that its tokens were drawn from.

    Attributes:
        tokens: int64 [B, N]; node 0, the root, is the last decided token, whose keys are not cached yet.
        shape: how the nodes hang together.
        kind: how the drafts were chosen.
        laws: ``laws[b, i]`` is the law that the children of node i were drawn from, [B, N, V]; None where there is
            none.
        extra: rows that the target forwards beside the nodes.
        drawn: how many children of each node, the first ones, were drawn from its law, int64 [B, N]; None where they
            are all of one kind.
    """

    tokens: Tensor
    shape: TreeShape
    kind: LawKind = LawKind.DETERMINISTIC
    laws: Tensor | None = None
    extra: ExtraRows | None = None
    drawn: Tensor | None = None

    @property
    def nodes(self) -> int:
        """Nodes N, the root included."""
        return self.tokens.shape[1]

    def rows(self) -> tuple[Tensor, Tensor]:
        """Returns the depth of nodes and extra rows below the root, int64 [B or 1, N + M], and which of them each sees,
        bool [B or 1, N + M, N + M].
        """
        depth, seen = self.shape.depth, self.shape.ancestors
        if self.extra is None:
            return depth, seen
        extra = self.extra
        batch = max(len(part) for part in (seen, extra.attach, extra.sees))
        depth, seen = depth.expand(batch, -1), seen.expand(batch, -1, -1)
        at, exists = extra.attach.expand(batch, -1).clamp(min=0), extra.attach >= 0
        below = depth.gather(1, at) + extra.offset
        path = seen.gather(1, at[..., None].expand(-1, -1, self.nodes)) & exists[..., None]
        sees = extra.sees.expand(batch, -1, -1)
        nodes = torch.nn.functional.pad(seen, (0, extra.count))
        return torch.cat([depth, below], 1), torch.cat([nodes, torch.cat([path, sees], 2)], 1)
