"""Plain autoregressive sampling: the loop with empty drafts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from vistok.samplers.interface import AutoregressiveSampler
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Run, Scores, Verdict
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
class Autoregressive(AutoregressiveSampler):
    """One target forward for every token."""

    def parts(self, model: nn.Module, params: SamplingParams, batch: int) -> tuple[NoDraft, Draw]:
        """Returns the empty drafter and the verifier that draws."""
        return NoDraft(), Draw()
