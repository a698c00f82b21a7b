"""Drafting with an EAGLE network: static trees (arXiv 2401.15077) and dynamic ones (EAGLE-2, arXiv 2406.16858).

With guidance the network runs on conditional and unconditional features side by side, and its logits are combined like
the target's. A dynamic tree takes the most likely tokens, so its drafts are deterministic; a static tree draws each
node's children without replacement from the processed law, or takes the most likely ones when decoding is greedy.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.errors import VistokError
from vistok.models.heads.eagle import Eagle as EagleNetwork
from vistok.models.llamagen import LlamaGen
from vistok.ops import pack_linears
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.interface import DraftPolicy
from vistok.samplers.loop import generate
from vistok.samplers.noise import Noise
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.static import StaticTree
from vistok.samplers.stats import Stats
from vistok.samplers.targets.llamagen import ImageTarget
from vistok.samplers.verifiers.candidates import exact_tree

DEFAULT_DRAFTER = "llamagen-mini-eagle"


def draft_policy(tree: str, drafts: int, depth: int, top_k: int) -> DraftPolicy:
    """The policy of a tree's name: ``dynamic``, or a published static tree."""
    return DynamicTree(drafts, depth, top_k) if tree == "dynamic" else StaticTree(tree)


@functools.lru_cache(maxsize=4)
def _load(name: str, grid: int, prefix: int, dtype: torch.dtype, device: torch.device) -> EagleNetwork:
    network = (
        EagleNetwork.from_pretrained(name, grid=grid, cls_token_num=prefix).to(device, dtype).requires_grad_(False)
    )
    return pack_linears(network) if device.type == "cpu" else network


def drafter_of(drafter: EagleNetwork | str, model: LlamaGen) -> EagleNetwork:
    """The drafter network of a model: the one that is given, or the one of this name, loaded once.

    Raises:
        VistokError: the name leads nowhere, or the drafter was made for another target.
    """
    target, weight = model.config, model.tok_embeddings.weight
    if isinstance(drafter, str):
        drafter = _load(drafter, target.grid, target.cls_token_num, weight.dtype, weight.device)
    own = drafter.config
    pairs = {
        "hidden width": (own.hidden_size, target.dim),
        "vocabulary": (own.vocab_size, target.vocab_size),
        "grid": (own.grid, target.grid),
        "number of conditioning tokens": (own.cls_token_num, target.cls_token_num),
    }
    for what, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise VistokError(
                f"the drafter's {what} is {mine}, but the model's is {theirs}: name the drafter of this model."
            )
    return drafter


@dataclass(frozen=True)
class Eagle:
    """Exact speculation with an EAGLE drafter: the output's law is that of plain decoding.

    Attributes:
        drafter: the network that belongs to the target, or its name: an embedded one, a folder, or a hub id.
        tree: ``dynamic`` (EAGLE-2) or the name of a static tree.
        drafts, depth, top_k: shape of a dynamic tree.
    """

    drafter: EagleNetwork | str = DEFAULT_DRAFTER
    tree: str = "dynamic"
    drafts: int = 16
    depth: int = 4
    top_k: int = 4

    def __post_init__(self):
        draft_policy(self.tree, self.drafts, self.depth, self.top_k)

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
        policy = draft_policy(self.tree, self.drafts, self.depth, self.top_k)
        drafter = HeadDrafter(drafter_of(self.drafter, model), model.head, params, policy, model.config.block_size)
        target = ImageTarget(model, params, condition, mask, nodes=drafter.nodes)
        return generate(target, drafter, exact_tree(drafter.kind), params, noise, progress)
