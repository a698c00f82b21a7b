"""What a drafter of text has beside the loop's protocol, with defaults that suit most: a new one is a few methods."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.samplers.drafters.plain import NoDraft
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Run, Scores, Verdict
from vistok.samplers.tree import LawKind, TokenTree

if TYPE_CHECKING:
    from vistok.samplers.targets.causal_lm import Prompt

Network = TypeVar("Network", bound=nn.Module)


class TextDrafter:
    """A drafter of text; a subclass gives ``nodes`` and ``propose``, and whatever else differs from what stands here.

    A run calls ``bind`` before anything is forwarded, ``read`` for pieces of the prompt if ``reads_prompt``, ``start``
    when the first token is decided, then ``propose`` and ``observe`` in turns. An object serves one run at a time, and
    may keep what it has learnt for the next.

    Attributes:
        kind: how drafts are chosen, which decides the verifier; may be set by ``bind``.
        chain: every tree is a chain.
        nodes: most nodes of a tree, the root and extra rows included.
        forwards: calls of a draft network in this run.
        features: it wants the target's final features, of the prompt and of every node, in the scores; or the states
            that enter these layers of the target, side by side.
        reads_prompt: it wants the target's logits behind every token of the prompt.
    """

    kind: LawKind = LawKind.DETERMINISTIC
    chain: bool = False
    nodes: int
    forwards: int = 0
    features: bool | tuple[int, ...] = False
    reads_prompt: bool = False

    def bind(
        self, model: nn.Module, prompt: Prompt, params: SamplingParams, length: int, tokenizer: Any | None = None
    ) -> None:
        """Prepare for a run.

        Args:
            model: the target's.
            prompt: what is continued.
            params: how the target's logits become probabilities.
            length: new tokens of the run.
            tokenizer: the target's, where it is known.
        """

    def read(self, tokens: Tensor, logits: Tensor) -> None:
        """Learn from the prompt: some of its tokens int64 [M], and the target's logits behind them [M, V]."""

    def start(self, run: Run, prefill: Scores) -> None:
        """Begin behind the first decided token."""

    def propose(self, run: Run) -> TokenTree:
        """Returns the next tree, rooted at the last decided token."""
        raise NotImplementedError

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Learn what became of the tree; ``run.decided`` is still that of the tree's root."""


class Undrafted(NoDraft, TextDrafter):
    """Plain decoding of text: trees without drafts."""


class TextSoFar:
    """Prompts and what was decided behind them, flush left.

    Args:
        prompt: what is continued.
        run: whose first tokens are decided.
        slack: room behind the longest text, in tokens.

    Attributes:
        tokens: int64 [B, T]; anything behind ``size``.
        size: tokens of each text, int64 [B].
    """

    def __init__(self, prompt: Prompt, run: Run, slack: int = 0):
        self.tokens = F.pad(prompt.flush, (0, run.tokens.shape[1] + slack))
        self.size = prompt.count
        self.append(run.tokens[:, :1], torch.ones_like(self.size))

    def append(self, tokens: Tensor, count: Tensor) -> None:
        """Append the first ``count`` [B] of tokens [B, M]."""
        places = self.size[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        self.tokens.scatter_(1, places.clamp(max=self.tokens.shape[1] - 1), tokens)
        self.size = self.size + count


def fitted(network: Network, model: nn.Module) -> Network:
    """Returns a draft network, frozen, with a target's dtype and on its device."""
    weight = model.get_input_embeddings().weight
    return network.to(weight.device, weight.dtype).requires_grad_(False)
