"""Token trees as attention sees them: ancestor bit words, depths, and the mask that they stand for.

A draft of N nodes is stored behind a sequence's prefix, node i at row ``prefix + i``. Node i sees the whole prefix,
its ancestors and itself: one bit each, 64 to a word, so no mask over the prefix is ever stored. Tree verification
is SpecInfer's (arXiv 2305.09781). A chain is the tree whose node i has parent i - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

ROOT, PADDING = -1, -2  # parents of a node right behind the prefix, and of a node that does not exist
WORD_BITS = 64


@dataclass(frozen=True)
class TreeMask:
    """Who sees whom in one forward pass over drafts: pass it to :func:`vistok.ops.attention` as ``mask``.

    Build it once for a pass; all layers share it.

    Attributes:
        prefix: rows before the draft that every query sees, int64 [B].
        nodes: draft rows N behind each prefix.
        words: bit ``j % 64`` of ``words[b, t, j // 64]`` says that query t sees draft row j, int64 [B, T, W]. A
            query without any bit is padding and sees nothing. None: a chain, query t sees draft rows 0 .. t.
    """

    prefix: Tensor
    nodes: int
    words: Tensor | None = None

    @staticmethod
    def from_parents(parents: Tensor, prefix: Tensor) -> TreeMask:
        """Mask of a draft whose queries are its nodes: parents as in :func:`ancestor_words`, prefix [B]."""
        return TreeMask(prefix, parents.shape[1], ancestor_words(parents))

    def draft(self) -> Tensor:
        """The mask over the draft rows alone, bool [B, T, N]."""
        rows = torch.arange(self.nodes, device=self.prefix.device)
        if self.words is None:
            return (rows <= rows[:, None]).expand(len(self.prefix), -1, -1)
        return (self.words[..., rows // WORD_BITS] >> (rows % WORD_BITS) & 1).bool()

    def dense(self, keys: int) -> Tensor:
        """The whole mask over the first ``keys`` rows of the cache, bool [B, T, keys]."""
        draft = self.draft()
        columns = torch.arange(keys, device=draft.device)
        before = (columns < self.prefix[:, None])[:, None] & draft.any(-1, keepdim=True)
        node = columns - self.prefix[:, None]
        inside = (node >= 0) & (node < self.nodes)
        picked = draft.gather(-1, node.clamp(0, self.nodes - 1)[:, None].expand(-1, draft.shape[1], -1))
        return before | (inside[:, None] & picked)

    @cached_property
    def sequences(self) -> list[tuple[int, Tensor]]:
        """Rows in use and mask over them, bool [T, rows], of every sequence; trailing padding is cut off."""
        draft = self.draft()
        alive = draft.any(-1, keepdim=True)
        used = (draft.any(1) * torch.arange(1, self.nodes + 1, device=draft.device)).amax(-1).tolist()
        return [
            (before + after, torch.cat([alive[b].expand(-1, before), draft[b, :, :after]], dim=-1))
            for b, (before, after) in enumerate(zip(self.prefix.tolist(), used, strict=True))
        ]

    @cached_property
    def batched(self) -> tuple[int, Tensor | None] | None:
        """Rows in use and mask [B, 1, T, rows] where all sequences use equally many, else None.

        The mask is None where every query sees every row.
        """
        rows = self.sequences[0][0]
        if any(other != rows for other, _ in self.sequences):
            return None
        visible = torch.stack([mask for _, mask in self.sequences])[:, None]
        return rows, None if visible.all() else visible


def ancestor_mask(parents: Tensor) -> Tensor:
    """Which nodes are a node's ancestors, or the node itself.

    Args:
        parents: index of every node's parent, smaller than its own; ``ROOT`` (-1) for children of the last prefix
            token, ``PADDING`` (-2) for nodes that do not exist. int64 [B, N].

    Returns:
        bool [B, N, N], entry (i, j): j is i or above i. Rows of padding are empty.
    """
    batch, nodes = parents.shape
    if parents.device.type == "cpu" and nodes < WORD_BITS:  # a few numbers: quicker without a tensor for each round
        words = torch.tensor([_words(row) for row in parents.tolist()])
        return (words[..., None] >> torch.arange(nodes) & 1).bool()
    reach = torch.eye(nodes, dtype=torch.bool, device=parents.device).expand(batch, -1, -1)
    jump = parents.clamp(min=ROOT)
    # Pointer doubling: after k rounds `reach` holds 2**k generations and `jump` leads 2**k generations up.
    for _ in range(max(nodes - 1, 0).bit_length()):
        on = jump >= 0
        up = jump.clamp(min=0)
        reach = reach | (reach.gather(1, up[..., None].expand(-1, -1, nodes)) & on[..., None])
        jump = torch.where(on, jump.gather(1, up), ROOT)
    return reach & (parents != PADDING)[..., None]


def _words(parents: list[int]) -> list[int]:
    """The masks of one draft's nodes, a bit for each node."""
    words: list[int] = []
    for node, parent in enumerate(parents):
        above = words[parent] if parent >= 0 else 0
        words.append(0 if parent == PADDING else above | 1 << node)
    return words


def ancestor_words(parents: Tensor) -> Tensor:
    """:func:`ancestor_mask` as bits: int64 [B, N, ceil(N / 64)]."""
    mask = ancestor_mask(parents)
    words = -(-parents.shape[1] // WORD_BITS)
    bits = torch.nn.functional.pad(mask, (0, words * WORD_BITS - mask.shape[-1])).unflatten(-1, (words, WORD_BITS))
    # The weights are distinct powers of two (the last is the sign bit), so their sum is their union.
    return (bits * (1 << torch.arange(WORD_BITS, device=parents.device))).sum(-1)


def tree_depths(parents: Tensor) -> Tensor:
    """Depth of each node, 0 right behind the prefix and -1 for padding, int64 [B, N].

    A node's position is ``prefix + depth``; siblings share it.
    """
    return ancestor_mask(parents).sum(-1) - 1
