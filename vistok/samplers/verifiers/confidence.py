"""Decoding that trusts itself (lexical unit decoding, arXiv 2405.15208): what the model was sure of is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree
from vistok.samplers.verifiers.walk import kept_path, longest_path


def confidence_span(probability: Tensor, threshold: float) -> Tensor:
    """Returns how many leading tokens a decoder keeps that trusts itself, int64 [B] of [B, m]: the first, and those
    behind it as long as each is at least as probable as the threshold.
    """
    sure = probability >= threshold
    sure[:, 0] = True
    return sure.long().cumprod(1).sum(1)


class KeepAll:
    """Keeps every draft without asking the target, and draws one token of the target behind them; lossy.

    It goes with a drafter that shows no more than it is sure of, such as ``LexicalUnits``.
    """

    accepts = frozenset({LawKind.DETERMINISTIC})
    trees = True
    lossless = False

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """Keeps the longest path.

        Raises:
            VistokError: logits are processed along the text, which unchecked drafts would bypass.
        """
        if run.stepwise:
            raise VistokError(
                "unchecked drafts bypass logits processors, and stopping criteria that count on them: leave these out, "
                "or take a verifier that checks."
            )
        path = longest_path(tree.shape, torch.ones_like(tree.tokens, dtype=torch.bool))
        height = (path >= 0).sum(1) - 1
        end = path.gather(1, height[:, None])[:, 0]
        places = (run.decided + height).clamp(max=run.length - 1)
        uniform = run.draws.gather(1, places[:, None])[:, 0]
        logits = scores.logits[torch.arange(len(end), device=end.device), end]
        return kept_path(tree.tokens, path, run.params.draw(logits, uniform))
