"""Drafting with an EAGLE network: static trees (arXiv 2401.15077) and dynamic ones (EAGLE-2, arXiv 2406.16858).

With guidance the network runs on conditional and unconditional features side by side, and its logits are combined like
the target's. A dynamic tree takes the most likely tokens, so its drafts are deterministic; a static tree draws each
node's children without replacement from the processed law, or takes the most likely ones when decoding is greedy.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from vistok.errors import VistokError
from vistok.models.heads.eagle import BEYOND, EagleNetwork
from vistok.ops import pack_linears, rope_1d
from vistok.samplers.cost import forward_cost
from vistok.samplers.drafters.head import HeadDrafter
from vistok.samplers.interface import AutoregressiveSampler, DraftPolicy
from vistok.samplers.params import SamplingParams
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.sized_growth import SizedDynamic
from vistok.samplers.policies.static import StaticTree
from vistok.samplers.targets.step_cost import head_cost
from vistok.samplers.verifiers.candidates import TreeVerifier, exact_tree

if TYPE_CHECKING:
    from vistok.samplers.verifiers.lantern import Lantern
    from vistok.tokenizers.interface import Tokenizer

DEFAULT_DRAFTER = "llamagen-mini-eagle"


def draft_policy(sampler: Eagle | Lantern) -> DraftPolicy:
    """Returns the policy of a sampler's tree: ``dynamic``, or a published static tree."""
    if sampler.tree != "dynamic":
        return StaticTree(sampler.tree)
    return DynamicTree(sampler.drafts, sampler.depth, sampler.top_k, sampler.confidence, sampler.least)


@functools.lru_cache(maxsize=4)
def _load(name: str, grid: int, prefix: int, dtype: torch.dtype, device: torch.device) -> EagleNetwork:
    network = (
        EagleNetwork.from_pretrained(name, grid=grid, cls_token_num=prefix).to(device, dtype).requires_grad_(False)
    )
    return pack_linears(network) if device.type == "cpu" else network


def drafter_of(drafter: EagleNetwork | str, model: nn.Module) -> EagleNetwork:
    """Returns the draft network of a model: the one that is given, or the one of this name, loaded once.

    Raises:
        VistokError: the name leads nowhere, or the network was made for another target.
    """
    tokens, weight = model.tokens, next(model.parameters())
    grid = getattr(model, "rope_grid", tokens.line)
    if isinstance(drafter, str):
        drafter = _load(drafter, grid, model.prefix, weight.dtype, weight.device)
    own = drafter.config
    pairs = {
        "hidden width": (own.hidden_size, model.width),
        "vocabulary": (own.vocab_size, tokens.size),
        "grid": (own.grid, grid),
        "number of conditioning tokens": (own.cls_token_num, model.prefix),
    }
    for what, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise VistokError(
                f"the drafter's {what} is {mine}, but the model's is {theirs}: name the drafter of this model."
            )
    slots = model.prefix + tokens.length + BEYOND
    if not grid and len(drafter.rope) < slots:  # rotations reach as far as the picture
        drafter.rope = rope_1d(slots, own.head_dim, own.rope_theta).to(drafter.rope.device)
    return drafter


def head_drafter(sampler: Eagle | Lantern, model: nn.Module, params: SamplingParams, batch: int) -> HeadDrafter:
    """Returns the drafter that a sampler's options describe."""
    network = drafter_of(sampler.drafter, model)
    if sampler.tree == "auto":
        policy = _sized_policy(network, model, params, batch)
    else:
        policy = draft_policy(sampler)
    return HeadDrafter(network, model.head, params, policy, model.tokens.length)


_SIZED: WeakKeyDictionary[nn.Module, dict[tuple[int, bool], SizedDynamic]] = WeakKeyDictionary()


def _sized_policy(network: EagleNetwork, model: nn.Module, params: SamplingParams, batch: int) -> SizedDynamic:
    """The tree that follows machine and pictures; what it has learnt serves the batches to come."""
    known, key = _SIZED.setdefault(network, {}), (batch, params.guided)
    if key not in known:
        known[key] = SizedDynamic()
        calls = head_cost(network, model.head, 2 * batch if params.guided else batch)
        known[key].measure(forward_cost(model, params, batch), calls)
    return known[key]


@dataclass(frozen=True)
class Eagle(AutoregressiveSampler):
    """Exact speculation with an EAGLE drafter: the output's law is that of plain decoding.

    Attributes:
        drafter: the network that belongs to the target, or its name: an embedded one, a folder, or a hub id.
        tree: ``dynamic`` (EAGLE-2), the name of a static tree, or ``auto`` for dynamic trees of the size that pays on
            this machine, or none. Pictures are the same with all but static ones, which draw, up to rounding.
        drafts, depth, top_k, confidence, least: shape of a dynamic tree, see ``DynamicTree``.
    """

    drafter: EagleNetwork | str = DEFAULT_DRAFTER
    tree: str = "dynamic"
    drafts: int = 16
    depth: int = 6
    top_k: int = 3
    confidence: float = 0.7
    least: float = 0.05

    def __post_init__(self):
        if self.tree != "auto":
            draft_policy(self)

    def prepare(self, model: nn.Module, tokenizer: Tokenizer | None = None) -> Eagle:
        """Returns the sampler with its draft network loaded.

        Raises:
            VistokError: the network was made for another model, or its name leads nowhere.
        """
        return replace(self, drafter=drafter_of(self.drafter, model))

    def parts(self, model: nn.Module, params: SamplingParams, batch: int) -> tuple[HeadDrafter, TreeVerifier]:
        """Returns the drafter with its trees, and the exact rule for their kind of drafts."""
        drafter = head_drafter(self, model, params, batch)
        return drafter, exact_tree(drafter.kind)
