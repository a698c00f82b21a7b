"""Rules that test the candidates of one node of a token tree one after the other, so that the target's law is kept.

Recursive rejection takes candidates drawn with replacement (SpecInfer, arXiv 2305.09781) or without (RSD, arXiv
2402.14160), or picked by a rule (EAGLE-2, arXiv 2406.16858). k-sequential selection (SpecTr, arXiv 2310.15141) takes
independent ones. ``vistok.samplers.verifiers.walk`` applies a rule along the tree.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vistok.ops.sampling import residual_law
from vistok.samplers.tree import LawKind

State = tuple[Tensor, ...]


class Rule(Protocol):
    """How the candidates of one node are tested, for a batch of nodes at once.

    A state is a tuple of tensors whose first axis is the batch; the walk that applies the rule only carries it along.
    """

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        """Returns the state before the first test.

        Args:
            p: the target's law behind the node, [B, V].
            q: the law that the candidates were drawn from, [B, V]; None for rules that need none.
            candidates: how many of the node's candidates were drawn from ``q``, int64 [B]; they come first.
        """

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        """Tests the next candidate.

        Args:
            state: as ``enter`` or the last rejection left it.
            token: the candidate, int64 [B].
            uniform: in [0, 1), [B].

        Returns:
            Whether it is accepted, bool [B], and the state to go on with where it is not.
        """

    def law(self, state: State) -> Tensor:
        """Returns the law [B, V] that the token is drawn from when no candidate was accepted."""


def none_rejected(accepted: Tensor) -> bool:
    """Returns whether all of ``accepted``, bool [B], is true, so that nobody needs the state after a rejection.

    False on other devices than the CPU, where asking would wait for the device.
    """
    return accepted.device.type == "cpu" and bool(accepted.all())


class RecursiveRejection:
    """Accepts a candidate x with probability min(1, p(x) / q(x)); a rejection leaves norm(max(p - q, 0)) to the next.

    Args:
        replacement: whether candidates were drawn independently; if not, a rejected one is also taken out of ``q``.
    """

    def __init__(self, replacement: bool):
        self.replacement = replacement

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        return p, q

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        p, q = state
        at = token[:, None]
        chance = q.gather(1, at)[:, 0]
        # A law that ran out of tokens to draw without replacement fills up with tokens of probability 0: no drafts.
        accepted = (uniform * chance < p.gather(1, at)[:, 0]) & (chance > 0)
        if none_rejected(accepted):
            return accepted, state
        rest = residual_law(p, q)
        if not self.replacement:
            q = without(q, at)
        return accepted, (rest, q)

    def law(self, state: State) -> Tensor:
        return state[0]


class OneHot:
    """Accepts a candidate with its probability under the target; a rejected one is taken out of the target's law."""

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        return (p,)

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        (p,) = state
        at = token[:, None]
        return uniform < p.gather(1, at)[:, 0], (without(p, at),)

    def law(self, state: State) -> Tensor:
        return state[0]


class MixedRejection(RecursiveRejection):
    """Tests candidates drawn without replacement as ``RecursiveRejection`` does, and those picked by a rule, which
    follow them, as ``OneHot`` does on the law that is left.
    """

    def __init__(self):
        super().__init__(replacement=False)

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        return p, q, candidates

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        p, q, left = state
        at, drawn = token[:, None], (left > 0)[:, None]
        accepted, (rest, others) = super().test((p, q), token, uniform)
        picked = uniform < p.gather(1, at)[:, 0]
        rest = torch.where(drawn, rest, without(p, at))
        return torch.where(drawn[:, 0], accepted, picked), (rest, torch.where(drawn, others, q), left - 1)


class KSequential:
    """Accepts each of k independent candidates with probability min(1, p(x) / (rho q(x))); bisection finds rho."""

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        rho, beta, accepted = k_sequential(p, q, candidates)
        return p, q, rho, beta, accepted

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        p, q, rho, *_ = state
        at = token[:, None]
        return uniform * rho * q.gather(1, at)[:, 0] < p.gather(1, at)[:, 0], state

    def law(self, state: State) -> Tensor:
        p, q, rho, beta, accepted = state
        rest = (p - torch.minimum(q, p / rho[:, None]) * (accepted / beta.clamp(min=1e-300))[:, None]).clamp(min=0)
        total = rest.sum(1, keepdim=True)
        return torch.where(total > 0, rest / total.clamp(min=torch.finfo(rest.dtype).tiny), p)


def k_sequential(p: Tensor, q: Tensor, candidates: Tensor, rounds: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Returns SpecTr's division factor for k independent candidates of each row, and chances of acceptance under it.

    Args:
        p, q: laws of the target and the draft, [B, V].
        candidates: k, int64 [B].
        rounds: halvings of the interval of the bisection.

    Returns:
        rho, the smallest factor in [1, k] whose residual law is nowhere negative; beta = sum of min(q, p / rho), the
        chance that one candidate passes; and 1 - (1 - beta)^k, the chance that any does. [B] each, float64.
    """
    p, q, k = p.double(), q.double(), candidates.double()

    def passing(rho: Tensor) -> Tensor:
        return torch.minimum(q, p / rho[:, None]).sum(1)

    def excess(rho: Tensor) -> Tensor:
        beta = passing(rho)
        return 1 - (1 - beta) ** k - rho * beta  # decreasing in rho

    low, high = torch.ones_like(k), k.clamp(min=1)
    high = torch.where(excess(low) <= 0, low, high)
    for _ in range(rounds):
        middle = (low + high) / 2
        above = excess(middle) > 0
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    beta = passing(high)
    return high, beta, 1 - (1 - beta) ** k


def without(law: Tensor, token: Tensor) -> Tensor:
    """Returns a law [B, V] without the tokens [B, m], normalised; all zero where no probability is left."""
    rest = law.scatter(1, token, 0.0)
    return rest / rest.sum(1, keepdim=True).clamp(min=torch.finfo(law.dtype).tiny)


def exact_rule(kind: LawKind) -> Rule:
    """Returns the rule that keeps the target's law for a kind of drafts; stale ones have none."""
    if kind is LawKind.DETERMINISTIC:
        return OneHot()
    return MixedRejection() if kind is LawKind.MIXED else RecursiveRejection(kind is LawKind.INDEPENDENT)
