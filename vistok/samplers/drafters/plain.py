"""Plain autoregressive sampling: the loop with empty drafts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.models.llamagen import LlamaGen
from vistok.samplers.loop import Run, Scores, Verdict, generate
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.stats import Stats
from vistok.samplers.targets.llamagen import ImageTarget
from vistok.samplers.tree import LawKind, TokenTree, TreeShape
from vistok.samplers.verifiers.draw import Draw


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


@dataclass(frozen=True)
class Autoregressive:
    """One target forward for every token."""

    @torch.inference_mode()
    def sample(
        self,
        model: LlamaGen,
        condition: Tensor,
        mask: Tensor | None,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Stats]:
        """Draw a batch of pictures; see ``Sampler.sample``."""
        return generate(ImageTarget(model, params, condition, mask), NoDraft(), Draw(), params, noise, progress)
