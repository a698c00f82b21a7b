"""Typical acceptance (Medusa, arXiv 2401.10774), as parallel prompt decoding was published with (arXiv 2405.18628).

A draft passes if its probability exceeds min(threshold, alpha exp(-H)), H the entropy of the target's law: where the
target is unsure, much is good enough. The longest path wins, of several the likeliest, and the most likely token stands
behind it. Nothing is drawn, so the law of the target is not kept: lossy, but at temperature 0, where it is greedy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.loop import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree, TreeShape
from vistok.samplers.verifiers.candidates import SampleMatch
from vistok.samplers.verifiers.rules import State
from vistok.samplers.verifiers.walk import kept_path, pace, walk_tree


def typical(law: Tensor, tokens: Tensor, threshold: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Which tokens are typical of their laws.

    Args:
        law: [..., V].
        tokens: int64 [...].
        threshold, alpha: of the rule.

    Returns:
        Bool [...], and their probabilities [...].
    """
    chance = law.gather(-1, tokens[..., None])[..., 0]
    entropy = -(law * (law + 1e-5).log()).sum(-1)
    return chance > (alpha * (-entropy).exp()).clamp(max=threshold), chance


def likeliest_path(shape: TreeShape, passed: Tensor, chance: Tensor) -> Tensor:
    """The longest path on which every node but the root passed; of several the most probable, then the first.

    Args:
        shape: of the trees.
        passed: bool [B, N].
        chance: probability of each node behind its parent, [B, N].

    Returns:
        Path int64 [B, height + 1], padded with -1.
    """
    batch, nodes = passed.shape
    ancestors, depth = shape.ancestors.expand(batch, -1, -1), shape.depth.expand(batch, -1)
    failed = ~passed.bool()
    failed[:, 0] = False
    whole = ~(ancestors & failed[:, None]).any(-1) & ancestors[..., 0]
    steps = chance.log().nan_to_num(neginf=-1e4)
    steps[:, 0] = 0
    weight = (ancestors * steps[:, None]).sum(-1)
    reach = torch.where(whole, depth, -1)
    weight = weight.masked_fill(reach < reach.amax(1, keepdim=True), -torch.inf)
    end = weight.argmax(1)
    on = ancestors.gather(1, end[:, None, None].expand(-1, 1, nodes))[:, 0]
    path = torch.full((batch, shape.height + 2), -1, dtype=torch.int64, device=passed.device)
    places = torch.where(on, depth, shape.height + 1)  # the last column takes what is not on the path
    return path.scatter_(1, places, torch.arange(nodes, device=passed.device).expand(batch, -1))[:, :-1]


class TypicalTree:
    """Keeps the longest path of typical drafts; lossy.

    Args:
        threshold: probability that always suffices.
        alpha: how far below exp(-H) a draft may stay.

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
        """Judge a tree; where logits are processed along the path, the first child that passes is taken."""
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
        path = likeliest_path(tree.shape, *typical(above, tree.tokens, self.threshold, self.alpha))
        end = path.gather(1, (path >= 0).sum(1, keepdim=True) - 1)[:, 0]
        return kept_path(tree.tokens, path, law[torch.arange(len(law), device=law.device), end].argmax(-1))

    def enter(self, p: Tensor, q: Tensor | None, candidates: Tensor) -> State:
        """The rule of one candidate at a time: nothing is remembered but the law."""
        return (p,)

    def test(self, state: State, token: Tensor, uniform: Tensor) -> tuple[Tensor, State]:
        """Whether a candidate is typical."""
        return typical(state[0], token, self.threshold, self.alpha)[0], state

    def law(self, state: State) -> Tensor:
        """The law itself."""
        return state[0]
