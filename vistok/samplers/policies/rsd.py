"""Recursive speculative decoding: trees drawn without replacement (arXiv 2402.14160).

RSD-C gives each node the top few of its perturbed log-probabilities (Gumbel-top-k); RSD-S keeps the best few nodes of
each level by stochastic beam search (arXiv 1903.06059). Both leave siblings in decreasing perturbed order, in which
recursive rejection without replacement is lossless: which nodes are kept depends on the perturbed values, whose law is
the same whatever tokens they belong to.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.interface import DraftHead
from vistok.samplers.noise import DRAFT
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import draft_law, drafted_tree, kind_of
from vistok.samplers.run import Run
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


def gumbel_noise(run: Run, level: int, like: Tensor) -> Tensor:
    """Gumbel noise for all tokens of the nodes of a level, shaped like laws [B, T, V]; zero if greedy."""
    if run.params.greedy:
        return torch.zeros_like(like)
    _, nodes, size = like.shape
    node = torch.arange(nodes, device=like.device)[:, None]
    positions = (run.decided + level)[:, None, None]
    uniform = run.noise.uniform(positions, DRAFT, run.step, node, torch.arange(size, device=like.device))
    return -(-uniform.log()).log()


def gumbel_top_k(law: Tensor, gumbel: Tensor, k: int) -> Tensor:
    """Draws without replacement, in the order drawn: laws and noise [..., V] to tokens int64 [..., k]."""
    return (law.log() + gumbel).topk(k).indices


class Beams(NamedTuple):
    """The nodes that a level of stochastic beam search keeps, by decreasing perturbed value."""

    parent: Tensor  # number of the beam above, int64 [B, W]
    token: Tensor  # int64 [B, W]
    logprob: Tensor  # of the path, [B, W]
    perturbed: Tensor  # [B, W]


def beam_step(logprob: Tensor, perturbed: Tensor, law: Tensor, gumbel: Tensor, width: int) -> Beams:
    """One level of stochastic beam search.

    A child's perturbed value is its Gumbel-perturbed path log-probability, shifted so that the best child of each beam
    has the value of the beam: ``-log(exp(-G) - exp(-Z) + exp(-g))`` with Z the largest g of the beam.

    Args:
        logprob, perturbed: of the beams, [B, M].
        law, gumbel: behind each beam, [B, M, V].
        width: beams that are kept.
    """
    reach = logprob[..., None] + law.log()
    noisy = reach + gumbel
    best = noisy.amax(-1, keepdim=True)
    value = perturbed[..., None]
    shift = value - noisy + torch.log1p(-(noisy - best).exp())
    shifted = value - shift.clamp(min=0) - torch.log1p((-shift.abs()).exp())
    shifted = torch.where(noisy == best, value, shifted).masked_fill(law == 0, -torch.inf).nan_to_num(nan=-torch.inf)
    top = shifted.flatten(1).topk(width)
    parent, token = top.indices // law.shape[-1], top.indices % law.shape[-1]
    return Beams(parent, token, reach.flatten(1).gather(1, top.indices), top.values)


@functools.lru_cache(maxsize=64)
def branching_shape(widths: tuple[int, ...], device: torch.device) -> TreeShape:
    """The tree of which every node of a level has the same number of children, with its tables built once."""
    parents, first, above = [torch.full((1,), -1, device=device)], 0, 1
    for width in widths:
        parents.append((first + torch.arange(above, device=device)).repeat_interleave(width))
        first, above = first + above, above * width
    return TreeShape(torch.cat(parents)[None])


@dataclass(frozen=True)
class Branching:
    """RSD-C: every node of a level has the same number of children.

    Attributes:
        widths: children of a node, level by level.

    Raises:
        VistokError: a width below 1, or none.
    """

    widths: tuple[int, ...] = (3, 2, 1, 1)
    chain: ClassVar[bool] = False

    def __post_init__(self):
        if not self.widths or min(self.widths) < 1:
            raise VistokError(f"every level of a branching tree needs a width of at least 1, got {self.widths}.")

    @property
    def levels(self) -> list[int]:
        """Nodes of each level."""
        return [prod(self.widths[: i + 1]) for i in range(len(self.widths))]

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return 1 + sum(self.levels)

    @property
    def slots(self) -> int:
        """Slots that growing writes."""
        return sum(self.levels[:-1])

    def kind(self, params: SamplingParams) -> LawKind:
        """Siblings are drawn without replacement."""
        return kind_of(params, LawKind.WITHOUT_REPLACEMENT)

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Draw the children of all nodes of a level at a time."""
        device, hidden = run.decided.device, head.hidden
        shape, tokens, laws = branching_shape(self.widths, device), [run.root], []
        nodes = 1
        for level, width in enumerate(self.widths):
            above = hidden.shape[1]
            law = draft_law(run.params, head.logits(hidden, (run.decided[:, None] + level).expand(-1, above)))
            laws.append(law)
            chosen = gumbel_top_k(law, gumbel_noise(run, level, law), width)  # [B, T, width]
            tokens.append(head.token(chosen).flatten(1))
            first, nodes = nodes, nodes + above * width
            if level < len(self.widths) - 1:
                seen = shape.ancestors[:, first:nodes, 1:nodes]
                places = torch.full((above * width,), level, device=device)
                hidden = head.expand(tokens[-1], hidden.repeat_interleave(width, 1), seen, places)
        head.forget(self.slots)
        return drafted_tree(tokens, shape, laws, self.kind(run.params))


@dataclass(frozen=True)
class StochasticBeam:
    """RSD-S: the best nodes of each level by perturbed path probability.

    Attributes:
        width: nodes of a level.
        depth: levels.

    Raises:
        VistokError: a width or depth below 1.
    """

    width: int = 4
    depth: int = 4
    chain: ClassVar[bool] = False

    def __post_init__(self):
        if self.width < 1 or self.depth < 1:
            raise VistokError(f"a beam needs a width and a depth of at least 1, got {self.width} and {self.depth}.")

    @property
    def nodes(self) -> int:
        """Nodes, the root included."""
        return 1 + self.width * self.depth

    @property
    def slots(self) -> int:
        """Slots that growing writes."""
        return self.width * (self.depth - 1)

    def kind(self, params: SamplingParams) -> LawKind:
        """Siblings are drawn without replacement."""
        return kind_of(params, LawKind.WITHOUT_REPLACEMENT)

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """Search level by level."""
        device, batch, w, hidden = run.decided.device, len(run.decided), self.width, head.hidden
        tokens, laws, parents = [run.root], [], [torch.full((batch, 1), -1, device=device)]
        logprob = perturbed = torch.zeros(batch, 1, dtype=torch.float64, device=device)
        seen = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)
        own = torch.eye(w, dtype=torch.bool, device=device).expand(batch, -1, -1)
        for level in range(self.depth):
            above = hidden.shape[1]
            law = draft_law(run.params, head.logits(hidden, (run.decided[:, None] + level).expand(-1, above)))
            laws.append(law)
            law = law.double()
            if run.params.greedy:
                reach = (logprob[..., None] + law.log()).flatten(1).topk(w)
                parent, token = reach.indices // law.shape[-1], reach.indices % law.shape[-1]
                logprob = reach.values
            else:
                parent, token, logprob, perturbed = beam_step(logprob, perturbed, law, gumbel_noise(run, level, law), w)
            tokens.append(head.token(token))
            parents.append(parent if level == 0 else parent + 1 + w * (level - 1))
            if level < self.depth - 1:
                seen = torch.cat([seen.gather(1, parent[..., None].expand(-1, -1, seen.shape[2])), own], 2)
                index = parent.repeat(len(hidden) // batch, 1)[..., None].expand(-1, -1, hidden.shape[-1])
                hidden = head.expand(tokens[-1], hidden.gather(1, index), seen, torch.full((w,), level, device=device))
        head.forget(self.slots)
        shape = TreeShape(torch.cat(parents, 1))
        return drafted_tree(tokens, shape, laws, self.kind(run.params))
