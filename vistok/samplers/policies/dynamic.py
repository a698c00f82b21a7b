"""EAGLE-2's dynamic trees (arXiv 2406.16858): the most likely paths, so that drafts are deterministic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from vistok.errors import VistokError
from vistok.samplers.interface import DraftHead
from vistok.samplers.loop import Run
from vistok.samplers.params import SamplingParams
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


@dataclass(frozen=True)
class DynamicTree:
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
    def nodes(self) -> int:
        """Nodes, the root included."""
        return self.drafts + 1

    @property
    def slots(self) -> int:
        """Slots that growing writes."""
        return self.depth * self.top_k

    def kind(self, params: SamplingParams) -> LawKind:
        """The most likely tokens are no draws."""
        return LawKind.DETERMINISTIC

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Expand the best nodes level by level, then keep the best of all that was seen."""
        k = self.top_k
        batch, device = len(run.decided), run.decided.device
        position = run.decided[:, None]
        best = head.logits(head.hidden, position).log_softmax(-1)[:, 0].topk(k)
        score, frontier = best.values, head.token(best.indices)  # [B, K]
        tokens, scores = [frontier], [score]
        parents = [torch.full((batch, k), -1, device=device)]  # record numbers; -1 is the root
        records = torch.arange(k, device=device).expand(batch, -1)  # of the frontier
        features = head.hidden.expand(-1, k, -1)
        halves = len(features) // batch
        seen = torch.eye(k, dtype=torch.bool, device=device).expand(batch, -1, -1)
        for level in range(self.depth):
            hidden = head.expand(frontier, features, seen, torch.full((k,), level, device=device))
            best = head.logits(hidden, (position + level + 1).expand(-1, k)).log_softmax(-1).topk(k)  # [B, K, K]
            reach = (best.values + score[..., None]).flatten(1)
            found = head.token(best.indices).flatten(1)
            tokens.append(found)
            scores.append(reach)
            parents.append(records.repeat_interleave(k, 1))
            score, chosen = reach.topk(k)
            records = k + level * k * k + chosen
            frontier = found.gather(1, chosen)
            parent = chosen // k
            features = hidden.gather(1, parent.repeat(halves, 1)[..., None].expand(-1, -1, hidden.shape[-1]))
            above = seen.gather(1, parent[..., None].expand(-1, -1, seen.shape[2]))
            seen = torch.cat([above, torch.eye(k, dtype=torch.bool, device=device).expand(batch, -1, -1)], 2)
            halves = len(features) // batch
        head.forget(self.slots)
        number = torch.cat(scores, 1).topk(self.drafts).indices.sort(1).values  # a chosen node's parent is chosen too
        parent = torch.cat(parents, 1).gather(1, number).contiguous()
        place = torch.where(parent < 0, 0, torch.searchsorted(number, parent) + 1)
        root = torch.full((batch, 1), -1, device=device)
        drafted = torch.cat(tokens, 1).gather(1, number)
        return TokenTree(
            torch.cat([run.root, drafted], 1), TreeShape(torch.cat([root, place], 1)), LawKind.DETERMINISTIC
        )
