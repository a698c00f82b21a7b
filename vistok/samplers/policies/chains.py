"""Chains of drafts: one (speculative decoding, arXiv 2211.17192), or several independent ones (SpecTr, 2310.15141).

A policy asks the drafter for laws and draws from them; with greedy decoding it takes the most likely tokens instead,
and its drafts are deterministic.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.ops import draw
from vistok.samplers.interface import DraftHead
from vistok.samplers.noise import DRAFT
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Run
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


def draft_law(params: SamplingParams, logits: Tensor) -> Tensor:
    """What drafts are drawn from: the run's law of the draft logits; their plain softmax where decoding is greedy."""
    return logits.float().softmax(-1) if params.greedy else params.probabilities(logits)


def kind_of(params: SamplingParams, drawn: LawKind) -> LawKind:
    """How a policy's drafts are chosen: drawn, or the most likely ones where decoding is greedy."""
    return LawKind.DETERMINISTIC if params.greedy else drawn


def drafted_tree(tokens: list[Tensor], shape: TreeShape, laws: list[Tensor], kind: LawKind) -> TokenTree:
    """The tree of levels of tokens, with the laws behind all levels but the last; none where drafts were not drawn."""
    drafted = torch.cat(tokens, 1)
    if kind is LawKind.DETERMINISTIC:
        return TokenTree(drafted, shape)
    leaves = laws[0].new_zeros(len(drafted), shape.nodes - sum(law.shape[1] for law in laws), laws[0].shape[2])
    return TokenTree(drafted, shape, kind, torch.cat([*laws, leaves], 1))


@functools.lru_cache(maxsize=256)
def chain_shape(nodes: int, device: torch.device) -> TreeShape:
    """The chain of so many nodes, with its tables built once."""
    return TreeShape.chain_of(nodes, device)


def grow_chain(head: DraftHead, run: Run, drafts: int, kind: LawKind, confidence: float = 0.0) -> TokenTree:
    """Draft one token behind the other.

    Args:
        head: the draft network.
        run: whose texts are drafted.
        drafts: at most.
        kind: of the tree: deterministic, of the most likely tokens; or drawn.
        confidence: no further draft behind one that the network gives less than this probability.
    """
    device, hidden, drawn = run.decided.device, head.hidden, kind is not LawKind.DETERMINISTIC
    places, tokens, laws = torch.arange(drafts, device=device), [run.root], []
    for i in range(drafts):
        law = logits = head.logits(hidden, run.decided[:, None] + i)  # [B, 1, V]
        if drawn or confidence:
            law = draft_law(run.params, logits)
        token = draw(law, run.window(drafts + 1, DRAFT)[:, i : i + 1]) if drawn else law.argmax(-1)
        tokens.append(head.token(token))
        laws.append(law)
        if i == drafts - 1 or (confidence and bool((law.gather(2, token[..., None]) < confidence).all())):
            break
        seen = torch.ones(1, 1, i + 1, dtype=torch.bool, device=device)
        hidden = head.expand(tokens[-1], hidden, seen, places[i : i + 1])
    head.forget(i)
    return drafted_tree(tokens, chain_shape(i + 2, device), laws, kind)


@functools.lru_cache(maxsize=64)
def parallel_shape(chains: int, drafts: int, device: torch.device) -> TreeShape:
    """Several chains below one root, numbered level by level, with its tables built once."""
    below = torch.arange(1, 1 + chains * (drafts - 1), device=device)
    root = torch.full((1,), -1, device=device)
    return TreeShape(torch.cat([root, root.new_zeros(chains), below])[None])


class Counted:
    """Base of policies that say how many drafts a tree has at most, all but the last of which may be expanded."""

    drafts: int

    @property
    def nodes(self) -> int:
        """Most nodes, the root included."""
        return self.drafts + 1

    @property
    def slots(self) -> int:
        """Most slots that growing writes."""
        return self.drafts - 1


@dataclass(frozen=True)
class Chain(Counted):
    """One draft behind the other.

    Attributes:
        drafts: longest chain.
        confidence: no further draft behind one that the draft model gives less than this probability; what is shown
            never depends on the token that is shown, so this stays lossless.

    Raises:
        VistokError: no drafts, or a confidence outside [0, 1).
    """

    drafts: int = 5
    confidence: float = 0.0
    chain: ClassVar[bool] = True

    def __post_init__(self):
        if self.drafts < 1 or not 0 <= self.confidence < 1:
            raise VistokError(
                f"a chain needs at least 1 draft and a confidence in [0, 1), got {self.drafts} and {self.confidence}."
            )

    def kind(self, params: SamplingParams) -> LawKind:
        """Each is drawn from the law behind the one before."""
        return kind_of(params, LawKind.INDEPENDENT)

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Draw one token after the other."""
        return grow_chain(head, run, self.drafts, self.kind(run.params), self.confidence)


@dataclass(frozen=True)
class IndependentChains:
    """Several chains, drawn independently from the same law.

    Attributes:
        chains: how many.
        drafts: length of each.

    Raises:
        VistokError: no chain, or no drafts.
    """

    chains: int = 4
    drafts: int = 4
    chain: ClassVar[bool] = False

    def __post_init__(self):
        if self.chains < 1 or self.drafts < 1:
            raise VistokError(f"chains and drafts must be at least 1, got {self.chains} and {self.drafts}.")

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return 1 + self.chains * self.drafts

    @property
    def slots(self) -> int:
        """Slots that growing writes."""
        return self.chains * (self.drafts - 1)

    def kind(self, params: SamplingParams) -> LawKind:
        """Siblings are independent."""
        return kind_of(params, LawKind.INDEPENDENT)

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Draw the next token of all chains at a time."""
        k, device = self.chains, run.decided.device
        hidden, tokens, laws = head.hidden, [run.root], []
        numbers, own = torch.arange(k, device=device), torch.eye(k, dtype=torch.bool, device=device)
        for level in range(self.drafts):
            places = torch.full((k,), level, device=device)
            width = hidden.shape[1]
            law = draft_law(run.params, head.logits(hidden, (run.decided[:, None] + level).expand(-1, width)))
            laws.append(law)
            if run.params.greedy:
                token = law.topk(k).indices[:, 0] if level == 0 else law.argmax(-1)
            else:
                token = draw(law.expand(-1, k, -1), run.uniform(places, DRAFT, numbers))
            tokens.append(head.token(token))
            if level < self.drafts - 1:
                seen = own.repeat(1, level + 1)[None]
                hidden = head.expand(tokens[-1], hidden.expand(-1, k, -1), seen, places)
        head.forget(self.slots)
        return drafted_tree(tokens, parallel_shape(k, self.drafts, device), laws, self.kind(run.params))
