"""DySpec: trees that grow where the draft model is sure (arXiv 2410.11744).

A slot is the next child of a node, and its value the chance that verification gets to ask for it if acceptance is the
draft probability: the node's value times the probability that its earlier children leave over. The budget version
always fills the slot of the largest value, at one draft call a node; the layer-wise version fills every slot whose
value reaches a threshold, at one draft call a level. Children are drawn without replacement, and whether there is a
further one depends on earlier draws alone, so recursive rejection is lossless.

Drawing without replacement is reading off the tokens by decreasing log-probability plus Gumbel noise, so a node's
children are one ``topk``; and the products of the paper telescope: what is left over is one minus the probability of
the earlier children, and a node's value is its path probability.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops.tree import PADDING, ancestor_mask
from vistok.samplers.interface import DraftHead
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import Counted, draft_law, kind_of
from vistok.samplers.policies.rsd import gumbel_noise, gumbel_top_k
from vistok.samplers.run import Run
from vistok.samplers.tree import LawKind, TokenTree, TreeShape

# Tokens of new nodes [B, T], the parents' numbers of all nodes so far [B, n], and the new ones' depth below the root
# [B, T], to the laws and the noise behind the new ones, [B, T, V] each.
Expand = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Grown(NamedTuple):
    """A tree as it grew."""

    tokens: Tensor  # int64 [B, N], the root's is 0
    parents: Tensor  # int64 [B, N], -1 for the root, -2 for nodes that do not exist
    value: Tensor  # of each node, the root's is 1, [B, N]
    slot_value: Tensor  # of the slot that each node filled, [B, N]
    laws: Tensor  # behind each node, zero where it was not asked for, [B, N, V]


def _children(law: Tensor, gumbel: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draws without replacement [..., K] in order, their probabilities, and what was left over before each."""
    tokens = gumbel_top_k(law, gumbel, min(most, law.shape[-1]))
    chance = law.gather(-1, tokens)
    left = (1 - torch.cat([torch.zeros_like(chance[..., :1]), chance.cumsum(-1)[..., :-1]], -1)).clamp(min=0)
    return tokens, chance, left


def grow_by_budget(law: Tensor, gumbel: Tensor, expand: Expand, drafts: int) -> Grown:
    """Fill the slot of the largest value, again and again.

    Args:
        law, gumbel: behind the root, [B, V].
        expand: the draft model; called with one node of each tree at a time.
        drafts: nodes below the root.
    """
    batch, size = law.shape
    here, most = torch.arange(batch, device=law.device), min(drafts, size)
    tokens = torch.zeros(batch, drafts + 1, dtype=torch.int64, device=law.device)
    parents = torch.full_like(tokens, -1)
    depth = torch.zeros_like(tokens)
    value = law.new_ones(batch, drafts + 1)
    slot_value = law.new_ones(batch, drafts + 1)
    laws = law.new_zeros(batch, drafts + 1, size)
    order = tokens.new_zeros(batch, drafts + 1, most)  # each node's children in the order drawn
    chance = law.new_zeros(batch, drafts + 1, most)
    left = law.new_zeros(batch, drafts + 1, most + 1)  # nothing is left behind the last
    used = torch.zeros_like(tokens)  # children that each node has
    for node in range(drafts + 1):
        if node:
            slots = value[:, :node] * left[:, :node].gather(2, used[:, :node, None])[..., 0]
            best = slots.max(1)
            parent, rank = best.indices, used[here, best.indices]
            tokens[:, node], parents[:, node] = order[here, parent, rank], parent
            value[:, node] = value[here, parent] * chance[here, parent, rank]
            slot_value[:, node] = best.values
            depth[:, node] = depth[here, parent] + 1
            used[here, parent] = rank + 1
            if node == drafts:
                break
            behind, noise = expand(tokens[:, node : node + 1], parents[:, : node + 1], depth[:, node : node + 1])
            law, gumbel = behind[:, 0], noise[:, 0]
        laws[:, node] = law
        order[:, node], chance[:, node], left[:, node, :most] = _children(law, gumbel, most)
    return Grown(tokens, parents, value, slot_value, laws)


def grow_by_layers(
    law: Tensor,
    gumbel: Tensor,
    expand: Expand,
    threshold: float,
    nodes: int,
    depth: int,
    children: int,
    widths: Sequence[int] | None = None,
) -> Grown:
    """Fill every slot that is worth the threshold, level by level.

    Args:
        law, gumbel: behind the root, [B, V].
        expand: the draft model; called with all nodes of a level.
        threshold: least value of a slot.
        nodes: most nodes, the root included.
        depth: most levels below the root.
        children: most children of a node.
        widths: most nodes of each level; no such limit if None.
    """
    batch, size = law.shape
    law, gumbel = law[:, None], gumbel[:, None]
    tokens = [torch.zeros(batch, 1, dtype=torch.int64, device=law.device)]
    parents = [torch.full_like(tokens[0], -1)]
    value, slot_value, laws = [law.new_ones(batch, 1)], [law.new_ones(batch, 1)], [law]
    first = 0  # number of the level's first node
    for level in range(1, depth + 1):
        width = law.shape[1]
        token, chance, left = _children(law, gumbel, children)  # [B, T, K]
        slot = value[-1][..., None] * left
        shown = ((slot >= threshold) & (parents[-1] != PADDING)[..., None]).flatten(1)
        room = nodes - first - width
        shown &= shown.long().cumsum(1) <= (room if widths is None else min(room, widths[level - 1]))
        most = int(shown.sum(1).max())
        if most == 0:
            break
        pick = (~shown).long().sort(stable=True, dim=1).indices[:, :most]
        real = shown.gather(1, pick)
        tokens.append(torch.where(real, token.flatten(1).gather(1, pick), 0))
        parents.append(torch.where(real, first + pick // token.shape[2], PADDING))
        value.append(torch.where(real, (value[-1][..., None] * chance).flatten(1).gather(1, pick), 0))
        slot_value.append(torch.where(real, slot.flatten(1).gather(1, pick), 0))
        first += width
        if level == depth or first + most >= nodes or not bool((value[-1] >= threshold).any()):
            laws.append(law.new_zeros(batch, most, size))
            break
        law, gumbel = expand(tokens[-1], torch.cat(parents, 1), torch.full_like(tokens[-1], level))
        laws.append(law)
    return Grown(*(torch.cat(parts, 1) for parts in (tokens, parents, value, slot_value, laws)))


def heavy_first(parents: list[int]) -> list[int]:
    """The nodes of a tree depth first, the largest subtree first: ancestors end up close to one another, so that a
    kernel may skip most blocks of a large tree's mask.

    Args:
        parents: of each node, smaller than its own number; -1 for the root.
    """
    weight = [1] * len(parents)
    children: list[list[int]] = [[] for _ in parents]
    for node in range(len(parents) - 1, 0, -1):
        weight[parents[node]] += weight[node]
        children[parents[node]].append(node)
    order, stack = [], [0]
    while stack:
        node = stack.pop()
        order.append(node)
        stack += sorted(children[node], key=lambda child: (weight[child], -child))
    return order


@dataclass(frozen=True)
class DynamicBudget(Counted):
    """DySpec's tree of a fixed number of nodes: for targets so slow that a draft call a node does not matter.

    Attributes:
        drafts: nodes below the root.

    Raises:
        VistokError: no drafts.
    """

    drafts: int = 16
    chain: ClassVar[bool] = False

    def __post_init__(self):
        if self.drafts < 1:
            raise VistokError(f"a tree needs at least 1 draft, got {self.drafts}.")

    def kind(self, params: SamplingParams) -> LawKind:
        """Siblings are drawn without replacement."""
        return kind_of(params, LawKind.WITHOUT_REPLACEMENT)

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Grow by budget."""
        growth = _Growth(head, run)
        grown = grow_by_budget(*growth.root(), growth.expand, self.drafts)
        return growth.tree(grown)


@dataclass(frozen=True)
class DynamicLayers(Counted):
    """DySpec's tree by a threshold, at one draft call a level.

    Attributes:
        threshold: least value of a slot; about one over the number of nodes that are worth their cost.
        drafts: most nodes below the root.
        depth: most levels.
        children: most children of a node.

    Raises:
        VistokError: a value out of its range.
    """

    threshold: float = 0.08
    drafts: int = 24
    depth: int = 6
    children: int = 8
    chain: ClassVar[bool] = False

    def __post_init__(self):
        if not 0 < self.threshold <= 1 or min(self.drafts, self.depth, self.children) < 1:
            raise VistokError(
                "a dynamic tree needs a threshold in (0, 1] and at least 1 draft, level and child, "
                f"got {self.threshold}, {self.drafts}, {self.depth} and {self.children}."
            )

    @property
    def slots(self) -> int:
        """Most slots that growing writes."""
        return self.drafts

    def kind(self, params: SamplingParams) -> LawKind:
        """Siblings are drawn without replacement."""
        return kind_of(params, LawKind.WITHOUT_REPLACEMENT)

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Grow by layers."""
        return layered(head, run, self.threshold, self.nodes, self.depth, self.children)[0]


def layered(
    head: DraftHead,
    run: Run,
    threshold: float,
    nodes: int,
    depth: int,
    children: int,
    widths: Sequence[int] | None = None,
) -> tuple[TokenTree, Tensor]:
    """A tree that ``grow_by_layers`` grows from a draft network, and the values of its nodes' slots, [B, N]."""
    growth = _Growth(head, run)
    grown = grow_by_layers(*growth.root(), growth.expand, threshold, nodes, depth, children, widths)
    return growth.tree(grown), grown.slot_value


class _Growth:
    """The draft model as the functions above call it; it remembers the features behind every node."""

    def __init__(self, head: DraftHead, run: Run):
        self.head, self.run = head, run
        self.features = head.hidden  # behind each node that was expanded, [R, n, H]
        self.written = self.calls = 0

    def root(self) -> tuple[Tensor, Tensor]:
        law, noise = self._law(self.head.hidden, torch.zeros_like(self.run.root))
        return law[:, 0], noise[:, 0]

    def expand(self, tokens: Tensor, parents: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        width = tokens.shape[1]
        seen = ancestor_mask(parents)[:, -width:, 1:]
        halves = len(self.features) // len(tokens)
        above = parents[:, -width:].clamp(min=0).repeat(halves, 1)[..., None].expand(-1, -1, self.features.shape[-1])
        slots = (depth - 1).repeat(halves, 1)
        hidden = self.head.expand(self.head.token(tokens), self.features.gather(1, above), seen, slots)
        self.features = torch.cat([self.features, hidden], 1)
        self.written += width
        return self._law(hidden, depth)

    def _law(self, hidden: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        law = draft_law(self.run.params, self.head.logits(hidden, self.run.decided[:, None] + depth))
        noise = gumbel_noise(self.run, self.calls, law)
        self.calls += 1
        return law, noise

    def tree(self, grown: Grown) -> TokenTree:
        self.head.forget(self.written)
        tokens = torch.cat([self.run.root, self.head.token(grown.tokens[:, 1:])], 1)
        if self.run.params.greedy:
            return TokenTree(tokens, TreeShape(grown.parents))
        return TokenTree(tokens, TreeShape(grown.parents), LawKind.WITHOUT_REPLACEMENT, grown.laws)
