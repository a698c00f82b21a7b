"""A draft model whose own tokens are drafted, e.g. by its prompt tokens (PPD beside a draft model, arXiv 2405.18628).

The chain is what the draft model says greedily; the loop decodes it, so it costs as many calls of the draft model as
the inner drafter leaves, and is the same chain whatever that is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.drafters.draft_model import same_vocabulary
from vistok.samplers.drafters.sorted_draft import Reader
from vistok.samplers.drafters.text import TextDrafter, TextSoFar
from vistok.samplers.loop import decode
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import chain_shape
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.cached_lm import CachedLM
from vistok.samplers.targets.causal_lm import Prompt, TextTarget
from vistok.samplers.targets.support import check_model
from vistok.samplers.tree import TokenTree
from vistok.samplers.verifiers.candidates import exact_tree

GREEDY = SamplingParams(greedy=True)


class _Continued(TextTarget):
    """The draft model as a target that has read a part of its texts before."""

    def __init__(self, reader: Reader, text: Tensor, size: Tensor, length: int):
        self.reader, self.text, self.size = reader, text, size
        self.lm: CachedLM = reader.lm
        self.length, self.batch, self.features = length, len(text), reader.lm.features

    def prefill(self) -> Scores:
        """Logits behind the texts, of which only what is new is read."""
        return Scores(self.reader.logits(self.text, self.size)[:, None])


class NestedDraft(TextDrafter):
    """Chains of a draft model that is itself decoded with drafts.

    Args:
        model: loaded by transformers, with the target's tokenizer and vocabulary.
        inner: drafts for the draft model; must draft by a rule and want no features, as ``ExtraRowDrafter`` does.
        drafts: longest draft.
        tokenizer: the model's; compared with the target's where both are known.

    Raises:
        VistokError: no drafts.
    """

    chain = True

    def __init__(self, model: nn.Module, inner: TextDrafter, drafts: int = 5, tokenizer: Any | None = None):
        if drafts < 1:
            raise VistokError(f"drafts are at least 1, got {drafts}.")
        self.model, self.inner, self.drafts, self.tokenizer = model, inner, drafts, tokenizer
        self.nodes = drafts + 1

    def bind(
        self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int, tokenizer: Any | None = None
    ) -> None:
        """Take the prompts of a run.

        Raises:
            VistokError: the draft model or its drafter does not fit.
        """
        same_vocabulary(self, model, tokenizer)
        check_model(self.model, 1)
        self.inner.bind(self.model, prompt, GREEDY, self.drafts, self.tokenizer)
        if self.inner.features or self.inner.reads_prompt:
            name = type(self.inner).__name__
            raise VistokError(
                f"{name} wants to read the draft model's prompt anew in every step: take another drafter."
            )
        end = prompt.ids.shape[1] + length + self.drafts
        self._reader = Reader(self.model, end + self.nodes + self.inner.nodes, end)
        self._prompt = prompt

    @property
    def forwards(self) -> int:
        """Calls of the draft model in this run."""
        return self._reader.lm.forwards

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin with the prompt and the first token."""
        self._so_far = TextSoFar(self._prompt, run, self.nodes)

    def propose(self, run: Run) -> TokenTree:
        """Let the draft model go on."""
        target = _Continued(self._reader, self._so_far.tokens, self._so_far.size, self.drafts)
        noise = Noise(0, torch.arange(len(self._so_far.tokens), device=self._so_far.tokens.device))
        drafts, _ = decode(target, self.inner, exact_tree(self.inner.kind), GREEDY, noise)
        return TokenTree(torch.cat([run.root, drafts], 1), chain_shape(self.nodes, run.root.device))

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Append what was decided; the draft model drops what it read of its own."""
        self._reader.rewind(self._so_far.size)
        self._so_far.append(verdict.emitted, verdict.count)
