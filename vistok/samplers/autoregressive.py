"""Plain autoregressive sampling: the loop with empty drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vistok.models.llamagen import LlamaGen
from vistok.samplers.law import Law
from vistok.samplers.loop import Run, Scores, Verdict, generate
from vistok.samplers.noise import Noise
from vistok.samplers.stats import Stats
from vistok.samplers.target import ImageTarget
from vistok.samplers.tree import LawKind, TokenTree, TreeShape


class NoDraft:
    """Proposes the root alone."""

    kind = LawKind.DETERMINISTIC
    chain = True
    nodes = 1
    forwards = 0

    def start(self, run: Run, prefill: Scores) -> None:
        """Build the one shape."""
        self._shape = TreeShape.chain_of(1, run.tokens.device)

    def propose(self, run: Run) -> TokenTree:
        """The last decided token."""
        return TokenTree(run.tokens[:, run.least - 1 : run.least], self._shape)

    def observe(self, run: Run, tree: TokenTree, scores: Scores, verdict: Verdict) -> None:
        """Nothing to learn."""


class Draw:
    """Draws the token behind the root; a tree without drafts leaves nothing to verify."""

    accepts = frozenset({LawKind.DETERMINISTIC})
    trees = False
    lossless = True

    def verify(self, tree: TokenTree, scores: Scores, run: Run) -> Verdict:
        """One token for every sample."""
        token = run.law.draw(scores.logits[:, 0], run.draws[:, run.least])
        return Verdict(token[:, None], torch.ones_like(token))


class Sampler(Protocol):
    """A way to draw pictures: a small frozen dataclass of options."""

    def sample(
        self,
        model: LlamaGen,
        condition: Tensor,
        mask: Tensor | None,
        law: Law,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Stats]:
        """Draw a batch of pictures.

        Args:
            model: the transformer.
            condition: labels [B] or text features [B, T, D].
            mask: which text features are real, [B, T]; all if None.
            law: guidance, temperature and truncation.
            noise: the random numbers of the run.
            progress: called with the tokens that the slowest sample gained.

        Returns:
            Codes int64 [B, n] in raster order, and the statistics of the run.
        """


@dataclass(frozen=True)
class Autoregressive:
    """One target forward for every token."""

    @torch.inference_mode()
    def sample(
        self,
        model: LlamaGen,
        condition: Tensor,
        mask: Tensor | None,
        law: Law,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Stats]:
        """Draw a batch of pictures; see ``Sampler.sample``."""
        return generate(ImageTarget(model, law, condition, mask), NoDraft(), Draw(), law, noise, progress)
