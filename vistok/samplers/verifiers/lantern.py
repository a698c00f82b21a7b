"""LANTERN and LANTERN++: an EAGLE drafter whose tokens are accepted more readily (arXiv 2410.03355, 2502.06352)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.heads.eagle import EagleNetwork
from vistok.samplers.drafters.eagle import DEFAULT_DRAFTER, draft_policy, drafter_of, head_drafter
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.interface import AutoregressiveSampler
from vistok.samplers.params import SamplingParams
from vistok.samplers.verifiers.relaxed import RelaxedTree, check_relaxation, nearest_codes

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer


@dataclass(frozen=True)
class Lantern(AutoregressiveSampler):
    """Speculation that also accepts codes whose look-alikes are likely: faster than exact speculation, and lossy.

    Attributes:
        drafter: the EAGLE network that belongs to the target, or its name; see ``Eagle``.
        k: neighbours that may lend their probability.
        delta: how much: a total variation (additive), or the factor lambda by which a draft's probability may grow
            (multiplicative, LANTERN++).
        mode: ``additive`` or ``multiplicative``.
        residual: ``paper``, or ``reference`` for that of the published code.
        tree: ``dynamic`` (LANTERN) or the name of a static tree (LANTERN++).
        drafts, depth, top_k, confidence, least: shape of a dynamic tree, see ``DynamicTree``.
        codebook: the codes of the target's tokenizer, [V, D]; their neighbours are found once.

    Raises:
        VistokError: options that make no sense together.
    """

    drafter: EagleNetwork | str = DEFAULT_DRAFTER
    k: int = 60
    delta: float = 0.1
    mode: str = "additive"
    residual: str = "paper"
    tree: str = "dynamic"
    drafts: int = 16
    depth: int = 8
    top_k: int = 2
    confidence: float = 0.7
    least: float = 0.05
    codebook: Tensor | None = field(default=None, repr=False, compare=False)

    @property
    def lossless(self) -> bool:
        """Whether nothing may be borrowed, so that the rule is the exact one."""
        return self.k == 0 or self.delta == (0 if self.mode == "additive" else 1)

    def __post_init__(self):
        check_relaxation(self.k, self.delta, self.mode, self.residual)
        if self.tree == "auto":
            raise VistokError(
                "LANTERN's pictures depend on its trees, and those of 'auto' on the clock: take 'dynamic'."
            )
        draft_policy(self)

    def with_codebook(self, codebook: Tensor) -> Lantern:
        """The same sampler for the tokenizer of this codebook, [V, D]."""
        return replace(self, codebook=codebook)

    @functools.cached_property
    def neighbours(self) -> Tensor:
        """The table of nearest codes, int64 [V, k], and a column more for the reference residual.

        Raises:
            VistokError: there is no codebook, or it has too few codes.
        """
        if self.codebook is None:
            raise VistokError("LANTERN needs the tokenizer's codebook: call with_codebook with it.")
        return nearest_codes(self.codebook, self.k + (self.residual == "reference" and self.k > 0))

    def prepare(self, model: nn.Module, tokenizer: Tokenizer | None = None) -> Lantern:
        """Returns the sampler with its draft network, and with the tokenizer's codebook where none was given.

        Neighbours are those of the codebook's raw rows, as published, also where the tokenizer compares them by angle.

        Raises:
            VistokError: the network was made for another model, or the tokenizer has no codebook of weights.
        """
        codebook = self.codebook
        if codebook is None:  # of a generator that has its tokenizer within
            codebook = getattr(model, "codebook", None)
        if codebook is None and tokenizer is not None:
            if not hasattr(tokenizer, "quantize"):
                raise VistokError(
                    "LANTERN compares codes, and this tokenizer has no codebook of weights: take the sampler 'eagle'."
                )
            codebook = tokenizer.quantize.embedding.weight.detach()
        drafter = drafter_of(self.drafter, model)
        if drafter is self.drafter and codebook is self.codebook:  # keeps the neighbours that were found
            return self
        return replace(self, drafter=drafter, codebook=codebook)

    def parts(self, model: nn.Module, params: SamplingParams, batch: int) -> tuple[HeadDrafter, RelaxedTree]:
        """Returns EAGLE's drafter and the relaxed rule.

        Raises:
            VistokError: there is no codebook, or it is that of another tokenizer.
        """
        neighbours = self.neighbours.to(next(model.parameters()).device)
        special = model.tokens.special
        if (
            special and len(neighbours) == model.tokens.size - special
        ):  # tokens that are no codes look like nothing else
            own = torch.arange(len(neighbours), model.tokens.size, device=neighbours.device)
            neighbours = torch.cat([neighbours, own[:, None].expand(-1, neighbours.shape[1])])
        if len(neighbours) != model.tokens.size:
            raise VistokError(
                f"the codebook has {len(neighbours)} codes, but the model draws from {model.tokens.size}: "
                "give the codebook of the tokenizer that the model was trained with."
            )
        verifier = RelaxedTree(neighbours, self.k, self.delta, self.mode, self.residual)
        return head_drafter(self, model, params, batch), verifier
