"""EAGLE-2's dynamic trees (arXiv 2406.16858): the most likely paths, so that drafts are deterministic."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.interface import DraftHead
from vistok.samplers.loop import Run
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import Counted
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


@dataclass(frozen=True)
class DynamicTree(Counted):
    """EAGLE-2's tree: the most likely paths, by the drafter's own probability.

    Attributes:
        drafts: nodes below the root.
        depth: further levels that are expanded below the root's children.
        top_k: nodes that are expanded in each level, and children of each.

    Raises:
        VistokError: more drafts than are looked at.
    """

    drafts: int = 58
    depth: int = 4
    top_k: int = 10
    chain: ClassVar[bool] = False

    def __post_init__(self):
        looked = self.top_k + self.depth * self.top_k**2
        if not 1 <= self.drafts <= looked:
            raise VistokError(
                f"a tree of top-k {self.top_k} and depth {self.depth} has 1 to {looked} drafts, not {self.drafts}."
            )

    @property
    def slots(self) -> int:
        """Slots that growing writes."""
        return self.depth * self.top_k

    def kind(self, params: SamplingParams) -> LawKind:
        """The most likely tokens are no draws."""
        return LawKind.DETERMINISTIC

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Expand the best nodes level by level, then keep the best of all that was seen."""
        return look(head, run, self.depth, self.top_k).tree(run, self.drafts)[0]


class Looked(NamedTuple):
    """Nodes that a draft network looked at, M of each text.

    Attributes:
        tokens: int64 [B, M].
        score: log-probabilities of the paths to them, [B, M].
        parents: their numbers, -1 for the root, int64 [B, M].
        level: generations below the root, int64 [M].
    """

    tokens: Tensor
    score: Tensor
    parents: Tensor
    level: Tensor

    def tree(self, run: Run, drafts: int) -> tuple[TokenTree, Tensor]:
        """The tree of so many best nodes, where there are as many, and their numbers, int64 [B, drafts]."""
        number = (
            self.score.topk(min(drafts, self.score.shape[1])).indices.sort(1).values
        )  # a chosen node's parent is chosen too
        parent = self.parents.gather(1, number).contiguous()
        place = torch.where(parent < 0, 0, torch.searchsorted(number, parent) + 1)
        root = torch.full_like(run.root, -1)
        tokens = torch.cat([run.root, self.tokens.gather(1, number)], 1)
        return TokenTree(tokens, TreeShape(torch.cat([root, place], 1)), LawKind.DETERMINISTIC), number


def look(head: DraftHead, run: Run, depth: int, k: int) -> Looked:
    """Expand the k best nodes of each level.

    Args:
        head: the draft network.
        run: whose texts are drafted.
        depth: levels that are expanded below the root's children.
        k: nodes that are expanded in each, and children of each; at most as many as there are tokens.
    """
    batch, device = len(run.decided), run.decided.device
    position = run.decided[:, None]
    law = head.logits(head.hidden, position).log_softmax(-1)[:, 0]
    k = min(k, law.shape[-1])
    own, slots, level_of = _constants(k, depth, device)
    best = law.topk(k)
    score, frontier = best.values, head.token(best.indices)  # [B, K]
    records = torch.arange(k, device=device).expand(batch, -1)  # of the frontier
    tokens, scores, parents = [frontier], [score], [torch.full_like(frontier, -1)]  # record numbers; -1 is the root
    features, halves = head.hidden.expand(-1, k, -1), len(head.hidden) // batch
    own = seen = own.expand(batch, -1, -1)
    for level in range(depth):
        hidden = head.expand(frontier, features, seen, slots[level])
        best = head.logits(hidden, (position + level + 1).expand(-1, k)).log_softmax(-1).topk(k)  # [B, K, K]
        reach = (best.values + score[..., None]).flatten(1)
        found = head.token(best.indices).flatten(1)
        tokens.append(found)
        scores.append(reach)
        parents.append(records[..., None].expand(-1, -1, k).flatten(1))
        if level + 1 == depth:
            break
        score, chosen = reach.topk(k)
        records = k + level * k * k + chosen
        frontier, parent = found.gather(1, chosen), chosen // k
        features = hidden.gather(1, parent.repeat(halves, 1)[..., None].expand(-1, -1, hidden.shape[-1]))
        above = seen.gather(1, parent[..., None].expand(-1, -1, seen.shape[2]))
        seen = torch.cat([above, own], 2)
    head.forget(depth * k)
    return Looked(torch.cat(tokens, 1), torch.cat(scores, 1), torch.cat(parents, 1), level_of)


@functools.lru_cache(maxsize=64)
def _constants(k: int, depth: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """That k nodes see themselves, bool [K, K]; their slots by level, [depth, K]; and the level of each record."""
    levels = torch.arange(depth, device=device)
    level_of = torch.cat([levels.new_ones(k), (levels + 2).repeat_interleave(k * k)])
    return torch.eye(k, dtype=torch.bool, device=device), levels[:, None].expand(-1, k), level_of
