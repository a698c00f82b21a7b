"""The verifier of empty drafts: a draw from the target."""

from __future__ import annotations

import torch

from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree


class Draw:
    """Draws the token behind the root; a tree without drafts leaves nothing to verify."""

    accepts = frozenset({LawKind.DETERMINISTIC})
    trees = False
    lossless = True

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Draws one token for every sample."""
        logits = scores.logits[:, 0]
        if run.processing is not None:
            logits = run.behind(tree, scores, torch.where(run.decided < run.length, 0, -1))
        token = run.params.draw(logits, run.draws[:, run.least])
        return Verdict(token[:, None], torch.ones_like(token))
