"""The protocols of samplers, draft heads and tree policies; the loop's own triple is in ``vistok.samplers.loop``."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.samplers.drafters.planned import Planned
from vistok.samplers.loop import Drafter, Verifier, decode
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.run import Run
from vistok.samplers.stats import Stats
from vistok.samplers.targets import target_of
from vistok.samplers.tree import LawKind, TokenTree

if TYPE_CHECKING:
    from typing_extensions import Self

    from vistok.tokenizers.interface import Tokenizer


class Partial(NamedTuple):
    """Images while they are drawn.

    Attributes:
        tokens: int64 [B, n] or [B, n, D]; what is not decided may hold anything.
        decided: which tokens are final, or stay until a revision, bool [B, n].
        step: number of steps so far, 0 behind the prefill.
    """

    tokens: Tensor
    decided: Tensor
    step: int


Watch = Callable[[Partial], None]


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
    """A way to draw the tokens of images: a small frozen dataclass of options.

    Attributes:
        interface: which generators it draws from, see ``vistok.models.interface.GeneratorFamily``.
        honours: the fields of ``SamplingParams`` that it heeds; it refuses the others.
        lossless: whether the tokens follow the model's distribution exactly.

    One that draws around tokens that are known, ``Condition.known``, has a class attribute ``fills`` that is True. One
    that shows images while it draws them has an argument ``watch`` of ``sample``, which is called with a ``Partial``
    after each step.
    """

    interface: ClassVar[str]
    honours: ClassVar[frozenset[str]]
    lossless: bool

    def prepare(self, model: Any, tokenizer: Tokenizer | None = None) -> Sampler:
        """Returns the sampler with all that it needs for a model, such as a draft network or a codebook."""

    def sample(
        self,
        model: Any,
        condition: Condition,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Stats]:
        """Draws a batch of images.

        Args:
            model: a generator of the sampler's ``interface``.
            condition: what the B images show.
            params: guidance, temperature and truncation.
            noise: the random numbers of the run.
            progress: called with the number of tokens that the slowest image gained.

        Returns:
            Codes int64 [B, n] or vectors [B, n, D], and the statistics of the run.
        """


class AutoregressiveSampler(ABC):
    """Base of the samplers that are a drafter and a verifier on the draft-verify loop: they only name these two."""

    interface = "autoregressive"
    honours = frozenset(field.name for field in fields(SamplingParams))
    lossless = True

    def prepare(self, model: Any, tokenizer: Tokenizer | None = None) -> Self:
        """Returns the sampler itself: by default nothing needs to be fetched."""
        return self

    @abstractmethod
    def parts(self, model: Any, params: SamplingParams, batch: int) -> tuple[Drafter, Verifier]:
        """Returns the drafter and the verifier of a run of ``batch`` images."""

    @torch.inference_mode()
    def sample(
        self,
        model: Any,
        condition: Condition,
        params: SamplingParams,
        noise: Noise,
        progress: Callable[[int], None] | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Stats]:
        """Draws a batch of images; see ``Sampler``."""
        parts = self.parts(model, params, len(condition))
        if not isinstance(parts, tuple) or len(parts) != 2:
            raise VistokError(f"{type(self).__name__} must name a drafter and a verifier, got {type(parts).__name__}.")
        drafter, verifier = parts
        if model.tokens.special:
            drafter = Planned(drafter, model.plan.places)
        target = target_of(model, condition, params, drafter.nodes)
        watched = None if watch is None else lambda run: watch(_partial(run))
        return decode(target, drafter, verifier, params, noise, progress, watch=watched)


def shows_steps(sampler: Sampler) -> bool:
    """Whether a sampler shows images while it draws them, see ``Sampler``."""
    return "watch" in inspect.signature(sampler.sample).parameters


def _partial(run: Run) -> Partial:
    tokens = run.tokens[:, : run.length]
    places = torch.arange(run.length, device=tokens.device)
    return Partial(tokens, places < run.decided[:, None], run.step)
