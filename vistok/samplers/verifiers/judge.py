"""Judge decoding (arXiv 2501.19309): a head on the target's features may overrule the exact rule.

A draft is kept if the exact rule accepts it, or if the head holds it for a correct continuation although the target
would have said something else. Lossy by design.
"""

from __future__ import annotations

import torch

from vistok.errors import VistokError
from vistok.models.heads.judge import JudgeHead
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree
from vistok.samplers.verifiers.rules import exact_rule
from vistok.samplers.verifiers.walk import walk_run


class Judge:
    """Tests candidates by the exact rule for their kind, and also accepts those that the judge head calls correct.

    Args:
        head: reads the target's final features at the draft.
        threshold: probability of being correct from which a draft is spared.

    Raises:
        VistokError: a threshold outside 0 to 1.
    """

    accepts = frozenset(LawKind) - {LawKind.STALE}
    trees = True
    lossless = False
    features = True

    def __init__(self, head: JudgeHead, threshold: float = 0.5):
        if not 0 <= threshold <= 1:
            raise VistokError(f"the judge's threshold lies within 0 to 1, got {threshold}.")
        self.head, self.threshold = head, threshold

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Keeps the accepted path and draws one token behind it.

        Raises:
            VistokError: the head is for another width, there are no features, or logits are processed along the text.
        """
        if run.processing is not None:
            raise VistokError("a judge does not know what logits processors forbid: leave them out, or decode exactly.")
        if scores.hidden is None or scores.hidden.shape[-1] != self.head.config.hidden_size:
            width = "no features" if scores.hidden is None else f"features of {scores.hidden.shape[-1]} numbers"
            raise VistokError(
                f"the judge reads features of {self.head.config.hidden_size} numbers, and the target gives {width}: "
                "take the head that was trained for this model."
            )
        self.head.to(scores.hidden.device)
        with torch.no_grad():
            spared = self.head(scores.hidden) > self.threshold
        return walk_run(tree, scores, run, exact_rule(tree.kind), spared)
