"""Verifiers of token trees, where several candidates compete for a position.

``TreeVerifier`` tests candidates by one of ``vistok.samplers.verifiers.rules``. ``SampleMatch`` draws from the target
and follows the child that was drawn: it fits any tree that was fixed before the target was asked, in the same law as
the one-hot rule, with one draw for a level.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.registry import lazy_attributes
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree
from vistok.samplers.verifiers.exact import coupled_chain
from vistok.samplers.verifiers.rules import MixedRejection, RecursiveRejection, Rule, exact_rule
from vistok.samplers.verifiers.walk import follow, kept_path, match_tree, pace, walk_run

DRAWN_AT_ONCE = 1 << 14  # logits of a tree up to which a draw behind every node costs less than a call for each level


class TreeVerifier:
    """Verifies a tree by testing its candidates with a rule.

    Args:
        rule: how the candidates of a node are tested.
        accepts: kinds of drafts that the rule is meant for.
        lossless: whether the rule keeps the target's law.
    """

    trees = True

    def __init__(self, rule: Rule, accepts: frozenset[LawKind], lossless: bool = True):
        self.rule, self.accepts, self.lossless = rule, accepts, lossless

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Keep the accepted path and draw one token behind it."""
        if tree.kind is LawKind.DETERMINISTIC and tree.kind not in self.accepts:  # this time nothing was drawn
            return _MATCH.verify(tree, scores, run)
        at_once = type(self.rule) in (RecursiveRejection, MixedRejection) and not run.stepwise
        if at_once and tree.shape.chain and tree.nodes > 1 and tree.drawn is None:
            return coupled_chain(tree, scores, run)  # the same rule for all drafts at a time
        return walk_run(tree, scores, run, self.rule)


class SampleMatch:
    """Keeps the path that sampling from the target follows through the tree.

    Each position is drawn once, with the uniform that plain decoding draws it with, so whatever the drafts are, the
    tokens are those of plain decoding with the same seed.
    """

    accepts = frozenset(LawKind) - {LawKind.STALE}
    trees = True
    lossless = True

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Draws along the tree, and keeps what was drafted and drawn."""
        if tree.nodes == 1 and not run.stepwise:
            uniform = run.draws.gather(1, run.decided[:, None].clamp(max=run.length - 1))[:, 0]
            token = run.params.draw(scores.logits[:, 0], uniform)
            return Verdict(token[:, None], torch.ones_like(token))
        if run.params.greedy and not run.stepwise and tree.tokens.device.type == "cpu":
            return follow(tree, scores.logits.argmax(-1))
        drawn = None
        if run.processing is None and scores.logits[0].numel() <= DRAWN_AT_ONCE:
            uniforms = run.drawn_with(tree.shape.depth)
            drawn = run.params.draw(scores.logits.flatten(0, 1), uniforms.flatten()).view_as(tree.tokens)
            if not run.stepwise and drawn.device.type == "cpu":
                return follow(tree, drawn)
        uniforms = run.drawn_with(torch.arange(tree.shape.height + 1, device=run.decided.device))

        def draws(node: Tensor, level: int) -> Tensor:
            if drawn is not None:
                return drawn.gather(1, node.clamp(min=0)[:, None])[:, 0]
            return run.params.draw(run.behind(tree, scores, node), uniforms[:, level])

        return kept_path(tree.tokens, *match_tree(tree.shape, tree.tokens, draws, *pace(run)))


_MATCH = SampleMatch()


def exact_tree(kind: LawKind) -> TreeVerifier | SampleMatch:
    """Returns the lossless verifier of trees with the highest acceptance for a kind of drafts."""
    if kind in (LawKind.INDEPENDENT, LawKind.WITHOUT_REPLACEMENT, LawKind.MIXED):
        return TreeVerifier(exact_rule(kind), frozenset({kind}))
    return SampleMatch()


# Rules and paths were defined here until 0.1.
__getattr__, __dir__ = lazy_attributes(
    __name__,
    dict.fromkeys(
        ("KSequential", "OneHot", "k_sequential"),
        "vistok.samplers.verifiers.rules",
    )
    | {"longest_path": "vistok.samplers.verifiers.walk"},
)
