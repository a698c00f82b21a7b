"""ADED: drafts from tri-grams that adapt to the text, by tree search on the CPU (arXiv 2407.12021).

Against the published code: drafts are the same in every run of a seed, a step is rewarded by its own token
(``legacy_reward`` for the released rule), texts of one token draft nothing, and sampling is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from vistok.errors import VistokError
from vistok.ops.tree import PADDING, ROOT
from vistok.samplers.drafters.text import TextDrafter
from vistok.samplers.noise import DRAFT
from vistok.samplers.policies.trigrams import Trigrams, draft_paths, extended, tree_search, trie
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.tree import TokenTree, TreeShape


class Aded(TextDrafter):
    """Drafts from tri-grams, which are kept and adapted from one run to the next.

    Args:
        trigrams: of a corpus; none but those of the text if None.
        iterations, top_k, choices: of the search; sentences and drafts that it gives at most.
        boost, cap, window: what each tri-gram of the last ``window`` tokens gains in every step, and at most has.
        warm: the tri-grams of a prompt gain once, all of them.
        legacy_reward: score steps of the search as released.

    Raises:
        VistokError: a number below 1.
    """

    def __init__(
        self,
        trigrams: Trigrams | None = None,
        iterations: int = 150,
        top_k: int = 24,
        choices: int = 64,
        boost: float = 0.04,
        cap: float = 3.0,
        window: int = 16,
        warm: bool = True,
        legacy_reward: bool = False,
    ):
        if min(iterations, top_k, choices, window) < 1:
            raise VistokError("iterations, top_k, choices and window of ADED must be at least 1.")
        self.trigrams = Trigrams() if trigrams is None else trigrams
        self.iterations, self.top_k, self.choices = iterations, top_k, choices
        self.boost, self.cap, self.window, self.warm = boost, cap, window, warm
        self.legacy_reward = legacy_reward
        self.nodes = choices + 1

    def bind(self, model: nn.Module, prompt: Prompt, *args: Any, **kwargs: Any) -> None:
        """Take the prompts of a run.

        Raises:
            VistokError: the tri-grams are those of a larger vocabulary.
        """
        size = model.get_input_embeddings().weight.shape[0]
        if self.trigrams.top >= size:
            raise VistokError(
                f"the tri-grams have a token {self.trigrams.top}, but the model's are 0 to {size - 1}: build them with "
                "its tokenizer, or make another drafter."
            )
        rows = zip(prompt.flush.tolist(), prompt.count.tolist(), strict=True)
        self._texts = [row[:count] for row, count in rows]

    def start(self, run: Run, prefill: Scores) -> None:
        """Adapt to the prompts."""
        for text, token in zip(self._texts, run.tokens[:, 0].tolist(), strict=True):
            text.append(token)
            if self.warm and self.boost:
                self.trigrams.boost(text, self.boost, self.cap)

    def propose(self, run: Run) -> TokenTree:
        """Adapt to the last tokens, and search."""
        draws = torch.arange(2 * self.iterations, device=run.decided.device)
        uniforms = run.uniform(torch.zeros_like(draws), DRAFT, draws).tolist()
        going = (run.decided < run.length).tolist()
        found = [
            self.drafts(text, iter(row)) if runs else ([], [])
            for text, row, runs in zip(self._texts, uniforms, going, strict=True)
        ]
        most = max(len(tokens) for tokens, _ in found)
        pad = [[0] * (most - len(tokens)) for tokens, _ in found]
        tokens = [row + rest for (row, _), rest in zip(found, pad, strict=True)]
        parents = [
            [ROOT, *(parent + 1 for parent in row), *(PADDING for _ in rest)]
            for (_, row), rest in zip(found, pad, strict=True)
        ]
        device = run.root.device
        drafts = torch.tensor(tokens, dtype=torch.int64, device=device).view(len(found), most)
        return TokenTree(torch.cat([run.root, drafts], 1), TreeShape(torch.tensor(parents, device=device)))

    def drafts(self, text: list[int], uniforms: Any) -> tuple[list[int], list[int]]:
        """Tokens behind a text and their parents, -1 for its end."""
        if self.boost:
            self.trigrams.boost(text[-self.window :], self.boost, self.cap)
        if len(text) < 2:
            return [], []
        pair = text[-2], text[-1]
        sentences = tree_search(self.trigrams, pair, uniforms, self.iterations, legacy_reward=self.legacy_reward)[
            : self.top_k
        ]
        paths = draft_paths(extended(self.trigrams, (sentence for sentence, _ in sentences)), self.choices)
        return trie(paths, self.choices)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Append what was decided."""
        for text, emitted, count in zip(self._texts, verdict.emitted.tolist(), verdict.count.tolist(), strict=True):
            text += emitted[:count]
