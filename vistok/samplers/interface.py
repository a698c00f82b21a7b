"""The protocols of samplers, draft heads and tree policies; the loop's own triple is in ``vistok.samplers.loop``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor, nn

from vistok.samplers.loop import Run
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.stats import Stats
from vistok.samplers.tree import LawKind, TokenTree


class DraftHead(Protocol):
    """A network that drafts, as a policy sees it: predicted features in, draft logits out.

    Guidance, where there is any, runs conditional and unconditional rows side by side: R = 2B rows of features for the
    B rows of tokens.

    Attributes:
        hidden: the predicted feature behind the last decided token, [R, 1, H].
    """

    hidden: Tensor

    def logits(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Returns the draft logits [B, T, V] behind features [R, T, H], of the tokens at ``positions`` [B, T]."""

    def token(self, index: Tensor) -> Tensor:
        """Returns the tokens that entries of the draft logits stand for."""

    def expand(self, tokens: Tensor, features: Tensor, seen: Tensor, slots: Tensor) -> Tensor:
        """Runs the network on draft nodes, whose cache slots stay until ``forget``.

        Args:
            tokens: int64 [B, T].
            features: the predicted features behind their parents, [R, T, H].
            seen: bool [B or 1, T, N], which of the N draft slots so far, these included, each node sees.
            slots: depth of the nodes below the root less 1, int64 [T] or [R, T].

        Returns:
            Predicted features [R, T, H].
        """

    def forget(self, slots: int) -> None:
        """Drops the last draft slots."""


class DraftPolicy(Protocol):
    """Which nodes are worth proposing.

    Attributes:
        nodes: most nodes of a tree, the root included.
        slots: most slots that growing a tree writes.
        chain: every tree is a chain.
    """

    nodes: int
    slots: int
    chain: bool

    def kind(self, params: SamplingParams) -> LawKind:
        """How drafts are chosen under this law."""

    def grow(self, head: DraftHead, run: Run) -> TokenTree:
        """A tree behind the last decided token."""


class Sampler(Protocol):
    """A way to draw pictures: a small frozen dataclass of options."""

    def sample(
        self,
        model: nn.Module,
        condition: Tensor,
        mask: Tensor | None,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Stats]:
        """Draw a batch of pictures.

        Args:
            model: the transformer.
            condition: labels [B] or text features [B, T, D].
            mask: which text features are real, [B, T]; all if None.
            params: guidance, temperature and truncation.
            noise: the random numbers of the run.
            progress: called with the tokens that the slowest sample gained.

        Returns:
            Codes int64 [B, n] in raster order, and the statistics of the run.
        """
