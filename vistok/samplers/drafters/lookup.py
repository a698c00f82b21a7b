"""Prompt lookup: what followed the last few tokens where they stood before is what may follow now.

The draft is the continuation of the latest earlier occurrence of the longest n-gram that ends the text (Saxena, 2023;
transformers takes the earliest occurrence). It is a rule's pick, so exact verification matches the target's draws.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.drafters.text import TextDrafter, TextSoFar
from vistok.samplers.policies.chains import chain_shape
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.tree import TokenTree


def continuation(text: Tensor, size: Tensor, ngram: int, drafts: int) -> tuple[Tensor, Tensor]:
    """Where the longest n-gram that ends each text stood last before, and how many known tokens follow it there.

    Args:
        text: int64 [B, T]; the first ``size`` tokens of each are real.
        size: int64 [B].
        ngram: most tokens of the n-gram.
        drafts: most tokens that are wanted.

    Returns:
        Place of the first token behind the occurrence, and tokens from there on that are known, at most ``drafts``;
        int64 [B] each, the latter 0 where there is no occurrence.
    """
    width = text.shape[1]
    places = torch.arange(width, device=text.device)
    matched = torch.zeros_like(text)  # tokens of the n-gram that end right before a place, unbroken
    unbroken = torch.ones_like(text, dtype=torch.bool)
    for back in range(1, ngram + 1):
        last = text.gather(1, (size - back).clamp(min=0)[:, None])
        shifted = torch.nn.functional.pad(text, (back, 0), value=-1)[:, :width]
        unbroken = unbroken & (shifted == last) & (size >= back)[:, None]
        matched = matched + unbroken
    matched = matched.masked_fill(places >= size[:, None], 0)  # the text's end itself does not count
    best = (matched * width + places).argmax(1)  # the longest, then the latest
    known = torch.minimum(size - best, torch.full_like(size, drafts))
    return best, torch.where(matched.gather(1, best[:, None])[:, 0] > 0, known, 0)


class PromptLookup(TextDrafter):
    """Chains from the text so far.

    Args:
        drafts: longest draft.
        ngram: longest n-gram that is looked up.

    Raises:
        VistokError: no drafts, or no n-gram.
    """

    chain = True

    def __init__(self, drafts: int = 10, ngram: int = 3):
        if drafts < 1 or ngram < 1:
            raise VistokError(f"prompt lookup needs drafts and ngram of at least 1, got {drafts} and {ngram}.")
        self.drafts, self.ngram, self.nodes = drafts, ngram, drafts + 1

    def bind(self, model: nn.Module, prompt: Prompt, *args: Any, **kwargs: Any) -> None:
        """Take the prompts of a run."""
        self._prompt = prompt

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin with the prompt and the first token."""
        self._so_far = TextSoFar(self._prompt, run)

    def propose(self, run: Run) -> TokenTree:
        """The continuation; no drafts where no sequence has one."""
        place, known = continuation(self._so_far.tokens, self._so_far.size, self.ngram, self.drafts)
        most = int(torch.where(run.decided < run.length, known, 0).max())
        source = place[:, None] + torch.arange(most, device=place.device)
        drafts = self._so_far.tokens.gather(1, source.clamp(max=self._so_far.tokens.shape[1] - 1))
        return TokenTree(torch.cat([run.root, drafts], 1), chain_shape(most + 1, run.tokens.device))

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Append what was decided."""
        self._so_far.append(verdict.emitted, verdict.count)
