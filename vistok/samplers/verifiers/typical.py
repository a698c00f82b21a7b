"""Typical acceptance (Medusa, arXiv 2401.10774), as parallel prompt decoding was published with (arXiv 2405.18628).

A draft passes if its probability exceeds min(threshold, alpha exp(-H)), H the entropy of the target's law: where the
target is unsure, much is good enough. The longest path wins, of several the likeliest, and the most likely token stands
behind it. Nothing is drawn, so the law of the target is not kept: lossy, but at temperature 0, where it is greedy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree
from vistok.samplers.verifiers.candidates import SampleMatch
from vistok.samplers.verifiers.rules import State
from vistok.samplers.verifiers.walk import kept_path, longest_path, pace, walk_tree


def typical(law: Tensor, tokens: Tensor, threshold: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Returns which tokens are typical of their laws.

    Args:
        law: [..., V].
        tokens: int64 [...].
        threshold, alpha: see ``TypicalTree``.

    Returns:
        Bool [...], and their probabilities [...].
    """
    chance = law.gather(-1, tokens[..., None])[..., 0]
    entropy = -(law * (law + 1e-5).log()).sum(-1)
    return chance > (alpha * (-entropy).exp()).clamp(max=threshold), chance


class TypicalTree:
    """Verifier that keeps the longest path of typical drafts; lossy. It is its own rule where walks go step by step.

    Args:
        threshold: probability above which a draft is always accepted.
        alpha: factor of exp(-H), above which a draft is accepted where the target is unsure.

    Raises:
        VistokError: a value outside 0 to 1.
    """

    accepts = frozenset(LawKind) - {LawKind.STALE}
    trees = True
    lossless = False

    def __init__(self, threshold: float = 0.09, alpha: float = 0.3):
        if not (0 <= threshold <= 1 and 0 <= alpha <= 1):
            raise VistokError(f"threshold and alpha lie within 0 to 1, got {threshold} and {alpha}.")
        self.threshold, self.alpha = threshold, alpha

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Keeps the longest typical path; where logits are processed along the path, the first child that passes is
        taken.
        """
        if run.params.greedy:
            return SampleMatch().verify(tree, scores, run)
        if run.stepwise:
            walk = walk_tree(
                tree.shape,
                tree.tokens,
                lambda node: run.params.probabilities(run.behind(tree, scores, node)),
                None,
                self,
                torch.zeros_like(tree.tokens[:, :1], dtype=torch.float64),
                *pace(run),
            )
            return kept_path(tree.tokens, walk.path, walk.law.argmax(-1))
        law = run.params.probabilities(scores.logits)
        parents = tree.shape.parents.expand_as(tree.tokens).clamp(min=0)
        above = law.gather(1, parents[..., None].expand(-1, -1, law.shape[-1]))
        path = longest_path(tree.shape, *typical(above, tree.tokens, self.threshold, self.alpha))
        end = path.gather(1, (path >= 0).sum(1, keepdim=True) - 1)[:, 0]
        return kept_path(tree.tokens, path, law[torch.arange(len(law), device=law.device), end].argmax(-1))

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        """Returns the state of ``rules.Rule``: the target's law alone."""
        return (p,)

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        """Returns whether a candidate is typical, and the state as it was."""
        return typical(state[0], token, self.threshold, self.alpha)[0], state

    def law(self, state: State) -> Tensor:
        """Returns the target's law: a rejection teaches nothing about the token."""
        return state[0]
