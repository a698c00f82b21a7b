"""Token Recycling for pictures: the drafter that text uses, on an autoregressive image transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.models.llamagen import LlamaGen
from vistok.samplers.candidates import SampleMatch
from vistok.samplers.law import Law
from vistok.samplers.loop import generate
from vistok.samplers.noise import Noise
from vistok.samplers.stats import Stats
from vistok.samplers.target import ImageTarget
from vistok.samplers.text.recycling import TokenRecycling
from vistok.samplers.text.trees import Path, best_tree, check_paths

# 16 drafts for codes whose runners-up are about equally likely: wide near the root, two levels deep.
TREE = best_tree([[0.25, 0.16, 0.12, 0.1, 0.08, 0.07, 0.06, 0.05]] * 3, 16)


@dataclass(frozen=True)
class Recycling:
    """Drafts from the codes that the model last thought most likely behind a code (arXiv 2408.08696); lossless, and the
    pictures are those of plain decoding with the same seed.

    Attributes:
        tree: rank paths of the draft tree.

    Raises:
        VistokError: a path whose beginning is missing.
    """

    tree: tuple[Path, ...] = TREE

    def __post_init__(self):
        check_paths(self.tree)

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
        drafter = TokenRecycling(self.tree, warm=False)
        target = ImageTarget(model, law, condition, mask, nodes=drafter.nodes)
        return generate(target, drafter, SampleMatch(), law, noise, progress)
