"""Drafting with a small causal LM that shares the target's tokenizer.

The draft model reads what was decided and gives the law behind the root; a policy then grows a tree, running the model
on the nodes of a level at a time. The policies of EAGLE drafters fit as well, with the model's logits in the place of
predicted features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.samplers.interface import DraftPolicy
from vistok.samplers.loop import Run, Scores, Verdict
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.chains import Chain
from vistok.samplers.targets.cached_lm import CachedLM, check_model
from vistok.samplers.targets.causal_lm import Prompt
from vistok.samplers.tree import TokenTree


class DraftModel:
    """A causal LM behind the loop's drafter interface.

    Args:
        model: loaded by transformers.
        policy: which nodes are worth proposing.

    Attributes:
        hidden: logits behind the last decided token, [B, 1, V].
        forwards: calls of the model in this run.
    """

    prompt_logits = features = False

    def __init__(self, model: nn.Module, policy: DraftPolicy | None = None):
        self.model, self.policy = model, policy or Chain()
        self.nodes, self.chain = self.policy.nodes, getattr(self.policy, "chain", False)

    def bind(self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int) -> None:
        """Take the prompts of a run and its law.

        Raises:
            VistokError: trees cannot run on this model.
        """
        self.kind = self.policy.kind(params)
        self._prompt = prompt
        self._rows = prompt.ids.shape[1] + length + self.nodes + max(self.nodes, self.policy.slots)
        check_model(self.model, self._rows)

    @property
    def forwards(self) -> int:
        """Calls of the model in this run."""
        return self._lm.forwards

    def start(self, run: Run, prefill: Scores) -> None:
        """Read the prompt and the first token.

        Raises:
            VistokError: the two models' vocabularies differ.
        """
        self._lm = CachedLM(self.model, self._rows)
        prompt = self._prompt
        tokens = F.pad(prompt.flush, (0, 1)).scatter(1, prompt.count[:, None], run.tokens[:, :1])
        self.hidden = self._lm.read(tokens, prompt.count + 1, 1)
        mine, theirs = self.hidden.shape[-1], prefill.logits.shape[-1]
        if mine != theirs:
            raise VistokError(
                f"the draft model has {mine} tokens, but the target {theirs}: take one with the target's tokenizer."
            )
        self._news: tuple[Tensor, Tensor] | None = None

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Remember what was decided, to be read when it is needed."""
        self._news = verdict.emitted, verdict.count

    def propose(self, run: Run) -> TokenTree:
        """Read the news and grow a tree."""
        if self._news is not None:
            tokens, count = self._news
            width = int(count.max())
            depth = torch.arange(width, device=tokens.device)
            logits = self._lm.forward(tokens[:, :width], depth[None], (depth <= depth[:, None])[None])
            self._lm.cache.advance(width if int(count.min()) == width else count)
            last = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, logits.shape[-1])
            self.hidden = torch.where((count > 0)[:, None, None], logits.gather(1, last), self.hidden)
            self._news = None
        return self.policy.grow(self, run)

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """The model's logits stand for themselves."""
        return hidden

    def token(self, index: Tensor) -> Tensor:
        """Tokens of entries of the logits."""
        return index

    def expand(self, tokens: Tensor, features: Tensor, seen: Tensor, slots: Tensor) -> Tensor:
        """Logits behind draft nodes, whose rows the cache keeps until ``forget``; see ``HeadDrafter.expand``."""
        logits = self._lm.forward(tokens, slots[None] if slots.ndim == 1 else slots, seen)
        self._lm.cache.advance(tokens.shape[1])
        return logits

    def forget(self, slots: int) -> None:
        """Drop the last draft rows."""
        if slots:
            self._lm.cache.advance(-slots)
