"""Lexical unit decoding (LUD, arXiv 2405.15208): a model that learnt to fill placeholders says several tokens at once.

Placeholders stand behind the last token, and what the model puts in their places is taken for as long as it is sure of
it. In the loop they are extra rows at the end of the draft, which is what the placeholders of the step before said; the
paper's decoding is ``LexicalUnits`` with the verifier ``KeepAll``, lossy. With a lossless verifier the placeholders
draft and nothing more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vistok.errors import VistokError
from vistok.models.heads.extra_rows import Placeholders
from vistok.ops.tree import PADDING
from vistok.samplers.drafters.extra_rows import hang, predictions
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import TokenTree, TreeShape
from vistok.samplers.verifiers.confidence import confidence_span

PLACEHOLDER = "<|placeholder|>"  # what the token is called where this package teaches it


class LexicalUnits(TextDrafter):
    """Chains of the tokens that the target's own placeholders are sure of.

    Args:
        placeholder: the token that the model was taught to fill.
        ahead: placeholders behind the last token.
        threshold: least probability of a token that follows.

    Raises:
        VistokError: a number below 1, or a threshold outside 0 to 1.
    """

    def __init__(self, placeholder: int, ahead: int = 4, threshold: float = 0.9):
        if ahead < 1 or not 0 <= threshold <= 1:
            raise VistokError(f"ahead is at least 1 and threshold within 0 to 1, got {ahead} and {threshold}.")
        self.placeholder, self.ahead, self.threshold = placeholder, ahead, threshold
        self.nodes = 1 + 2 * ahead

    def bind(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Take the target's placeholder.

        Raises:
            VistokError: the target has no such token.
        """
        table = model.get_input_embeddings()
        size = len(table.weight)
        if not 0 <= self.placeholder < size:
            raise VistokError(
                f"the placeholder is token {self.placeholder}, but the model has 0 to {size - 1}: name the token that "
                "it was trained with."
            )
        self._rows = Placeholders(table, self.placeholder, self.ahead)

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin without drafts."""
        self._span = torch.zeros_like(run.decided)
        self._drafts = run.decided.new_zeros(len(run.decided), self.ahead)

    def propose(self, run: Run) -> TokenTree:
        """What the placeholders were sure of, with new placeholders behind it."""
        most = int(self._span.max())
        places = torch.arange(-1, most, device=run.decided.device)
        parents = torch.where(places < self._span[:, None], places, PADDING)
        attach = self._span[:, None].expand(-1, self.ahead)
        extra = hang(self._rows, attach, torch.arange(self.ahead, device=attach.device).expand_as(attach))
        tokens = torch.cat([run.root, self._drafts[:, :most]], 1)
        return TokenTree(tokens, TreeShape(parents), extra=extra)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Read the placeholders, where all that stands before them was kept."""
        logits = predictions(self._rows, scores.extra, torch.zeros_like(self._span))
        chance, self._drafts = logits.float().softmax(-1).max(-1)
        first = torch.ones_like(chance[:, :1])  # the target's own token
        span = confidence_span(torch.cat([first, chance], 1), self.threshold) - 1
        self._span = torch.where(verdict.count == self._span + 1, span, 0)
