"""EAGLE-2's dynamic trees (arXiv 2406.16858): the most likely paths, so that drafts are deterministic."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops.tree import PADDING, ROOT
from vistok.samplers.interface import DraftHead
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import Counted
from vistok.samplers.run import Run
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


@dataclass(frozen=True)
class DynamicTree(Counted):
    """EAGLE-2's tree: the most likely paths, by the drafter's own probability.

    Attributes:
        drafts: nodes below the root.
        depth: further levels that are expanded below the root's children.
        top_k: nodes that are expanded in each level, and children of each.
        confidence: no further level below nodes whose paths are, all together, less likely than this.
        least: a draft whose path is less likely than this is not worth a row of the target.

    Raises:
        VistokError: more drafts than are looked at, or a probability outside [0, 1).
    """

    drafts: int = 58
    depth: int = 4
    top_k: int = 10
    confidence: float = 0.0
    least: float = 0.0
    chain: ClassVar[bool] = False

    def __post_init__(self):
        looked = self.top_k + self.depth * self.top_k**2
        if not 1 <= self.drafts <= looked:
            raise VistokError(
                f"a tree of top-k {self.top_k} and depth {self.depth} has 1 to {looked} drafts, not {self.drafts}."
            )

        if not (0 <= self.confidence < 1 and 0 <= self.least < 1):
            raise VistokError(
                f"confidence and least are probabilities in [0, 1), got {self.confidence} and {self.least}."
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
        return look(head, run, self.depth, self.top_k, self.confidence).tree(run, self.drafts, self.least)[0]


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

    def tree(self, run: Run, drafts: int, least: float = 0.0) -> tuple[TokenTree, Tensor]:
        """The tree of the best nodes, and their numbers, int64 [B, M].

        Args:
            run: whose texts are drafted.
            drafts: at most.
            least: probability of its path that a node must have; one draft there is in any case.
        """
        best = self.score.topk(min(drafts, self.score.shape[1]))
        floor = torch.clamp(best.values[:, :1], max=math.log(least) if least else torch.finfo(best.values.dtype).min)
        kept = best.values >= floor  # nothing of a text that was not looked at so deep
        order = best.indices[:, : int(kept.sum(1).max())].sort(1)
        number = order.values
        parent = self.parents.gather(1, number).contiguous()
        above = torch.searchsorted(number, parent)
        # A chosen node's parent is chosen too, but where an equally likely child took its place. As in the published
        # code that child hangs on the node that stands there now, which is as exact; unless it is itself.
        stands = (parent < 0) | (above < torch.arange(number.shape[1], device=number.device))
        kept = kept.gather(1, order.indices) & stands
        place = torch.where(parent < 0, 0, above + 1).masked_fill(~kept, PADDING)
        root = torch.full_like(run.root, ROOT)
        tokens = torch.cat([run.root, self.tokens.gather(1, number)], 1)
        return TokenTree(tokens, TreeShape(torch.cat([root, place], 1)), LawKind.DETERMINISTIC), number


def look(head: DraftHead, run: Run, depth: int, k: int, confidence: float = 0.0) -> Looked:
    """Expand the k best nodes of each level.

    Args:
        head: the draft network.
        run: whose texts are drafted.
        depth: levels that are expanded below the root's children.
        k: nodes that are expanded in each, and children of each; at most as many as there are tokens.
        confidence: texts whose nodes to expand have a lower probability, all together, are done.
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
    going, expanded = torch.ones(batch, 1, dtype=torch.bool, device=device), 0
    for level in range(depth):
        if confidence:
            going = going & (score.exp().sum(1, keepdim=True) >= confidence)
            if not bool(going.any()):
                break
        expanded += k
        hidden = head.expand(frontier, features, seen, slots[level])
        best = head.logits(hidden, (position + level + 1).expand(-1, k)).log_softmax(-1).topk(k)  # [B, K, K]
        reach = (best.values + score[..., None]).flatten(1)
        if confidence and batch > 1:
            reach = torch.where(going, reach, -torch.inf)
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
    head.forget(expanded)
    score = torch.cat(scores, 1)
    return Looked(torch.cat(tokens, 1), score, torch.cat(parents, 1), level_of[: score.shape[1]])


@functools.lru_cache(maxsize=64)
def _constants(k: int, depth: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """That k nodes see themselves, bool [K, K]; their slots by level, [depth, K]; and the level of each record."""
    levels = torch.arange(depth, device=device)
    level_of = torch.cat([levels.new_ones(k), (levels + 2).repeat_interleave(k * k)])
    return torch.eye(k, dtype=torch.bool, device=device), levels[:, None].expand(-1, k), level_of
