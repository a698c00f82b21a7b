"""LANTERN and LANTERN++: an EAGLE drafter whose tokens are accepted more readily (arXiv 2410.03355, 2502.06352)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.heads.eagle import Eagle as EagleNetwork
from vistok.models.llamagen import LlamaGen
from vistok.samplers.drafters.eagle import DEFAULT_DRAFTER, draft_policy, drafter_of
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.loop import generate
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.stats import Stats
from vistok.samplers.targets.llamagen import ImageTarget
from vistok.samplers.verifiers.relaxed import RelaxedTree, check_relaxation, nearest_codes


@dataclass(frozen=True)
class Lantern:
    """Speculation that also accepts codes that look alike: faster than exact speculation, and no longer of the target's
    law.

    Attributes:
        drafter: the EAGLE network that belongs to the target, or its name; see ``Eagle``.
        k: neighbours that may lend their probability.
        delta: how much: a total variation (additive), or the factor lambda by which a draft's probability may grow
            (multiplicative, LANTERN++).
        mode: ``additive`` or ``multiplicative``.
        residual: ``paper``, or ``reference`` for that of the published code.
        tree: ``dynamic`` (LANTERN) or the name of a static tree (LANTERN++).
        drafts, depth, top_k: shape of a dynamic tree.
        codebook: the codes of the target's tokenizer, [V, D]; their neighbours are found once.

    Raises:
        VistokError: options that make no sense together.
    """

    drafter: EagleNetwork | str = DEFAULT_DRAFTER
    k: int = 20
    delta: float = 0.1
    mode: str = "additive"
    residual: str = "paper"
    tree: str = "dynamic"
    drafts: int = 16
    depth: int = 4
    top_k: int = 4
    codebook: Tensor | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        check_relaxation(self.k, self.delta, self.mode, self.residual)
        draft_policy(self.tree, self.drafts, self.depth, self.top_k)

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
        neighbours = self.neighbours.to(model.tok_embeddings.weight.device)
        if len(neighbours) != model.config.vocab_size:
            raise VistokError(
                f"the codebook has {len(neighbours)} codes, but the model draws from {model.config.vocab_size}: "
                "give the codebook of the tokenizer that the model was trained with."
            )
        policy = draft_policy(self.tree, self.drafts, self.depth, self.top_k)
        drafter = HeadDrafter(drafter_of(self.drafter, model), model.head, params, policy, model.config.block_size)
        verifier = RelaxedTree(neighbours, self.k, self.delta, self.mode, self.residual)
        target = ImageTarget(model, params, condition, mask, nodes=drafter.nodes)
        return generate(target, drafter, verifier, params, noise, progress)
