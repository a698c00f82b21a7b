"""LANTERN and LANTERN++: an EAGLE drafter whose tokens are accepted more readily (arXiv 2410.03355, 2502.06352)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.eagle import Eagle as EagleNetwork
from vistok.models.llamagen import LlamaGen
from vistok.samplers.eagle import HeadDrafter, check_drafter, draft_policy
from vistok.samplers.law import Law
from vistok.samplers.loop import generate
from vistok.samplers.noise import Noise
from vistok.samplers.relaxed import RelaxedTree, check_relaxation, nearest_codes
from vistok.samplers.stats import Stats
from vistok.samplers.target import ImageTarget


@dataclass(frozen=True)
class Lantern:
    """Speculation that also accepts codes that look alike: faster than exact speculation, and no longer of the target's
    law.

    Attributes:
        drafter: the EAGLE network that belongs to the target.
        codebook: the tokenizer's codes [V, D]; their neighbours are found once.
        k: neighbours that may lend their probability.
        delta: how much: a total variation (additive), or the factor lambda by which a draft's probability may grow
            (multiplicative, LANTERN++).
        mode: ``additive`` or ``multiplicative``.
        residual: ``paper``, or ``reference`` for that of the published code.
        tree: ``dynamic`` (LANTERN) or the name of a static tree (LANTERN++).
        drafts, depth, top_k: shape of a dynamic tree.

    Raises:
        VistokError: options that make no sense together.
    """

    drafter: EagleNetwork
    codebook: Tensor
    k: int = 100
    delta: float = 0.1
    mode: str = "additive"
    residual: str = "paper"
    tree: str = "dynamic"
    drafts: int = 16
    depth: int = 4
    top_k: int = 4
    _neighbours: list[Tensor] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self):
        check_relaxation(self.k, self.delta, self.mode, self.residual)
        if self.k >= len(self.codebook):
            raise VistokError(
                f"the codebook has {len(self.codebook)} codes, so at most {len(self.codebook) - 1} neighbours."
            )

    def neighbours(self) -> Tensor:
        """The table of nearest codes, int64 [V, k], and a column more for the reference residual."""
        if not self._neighbours:
            columns = min(self.k + (self.residual == "reference"), len(self.codebook) - 1)
            self._neighbours.append(nearest_codes(self.codebook, columns))
        return self._neighbours[0]

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
        """Draw a batch of pictures; see ``Autoregressive.sample``."""
        check_drafter(self.drafter, model)
        if len(self.codebook) != model.config.vocab_size:
            raise VistokError(
                f"the codebook has {len(self.codebook)} codes, but the model draws from {model.config.vocab_size}: "
                "give the codebook of the tokenizer that the model was trained with."
            )
        policy = draft_policy(self.tree, self.drafts, self.depth, self.top_k)
        drafter = HeadDrafter(self.drafter, model.head, law, policy, model.config.block_size)
        neighbours = self.neighbours().to(next(model.parameters()).device)
        verifier = RelaxedTree(neighbours, self.k, self.delta, self.mode, self.residual)
        target = ImageTarget(model, law, condition, mask, nodes=drafter.nodes)
        return generate(target, drafter, verifier, law, noise, progress)
