"""EAGLE drafters: one decoder layer that predicts a target's next feature from its last one and the token that
followed.

EAGLE-1 and EAGLE-2 (arXiv 2401.15077, 2406.16858) and LANTERN's drafter for LlamaGen (arXiv 2410.03355) are
``EagleNetwork``: the feature is the target's final normalised state, the target's own head turns a predicted feature
into logits. Parameter names are those of the published checkpoints. EAGLE-3 is in ``vistok.models.heads.eagle3``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models import packed_step
from vistok.models.heads.drafter import MLP, Attention, Drafter, DrafterConfig, draft_mask
from vistok.models.llamagen import RMSNorm
from vistok.ops import KVCache, rope_2d
from vistok.registry import lazy_attributes

# What published configurations copy from the target, though their one layer is as plain as ever.
COPIED = {"head_dim", "rope_scaling"}
BEYOND = 10  # rows without rotation behind the grid, for drafts that run past the picture


@dataclass(frozen=True)
class EagleConfig(DrafterConfig):
    """Shape of an EAGLE-1 or EAGLE-2 drafter: that of DrafterConfig, with heads and rotations as plain as LLaMA's.

    Attributes:
        bias: whether ``fc`` has a bias.
        grid: side of the picture's token grid for two-dimensional rotations; 0 for text.
        cls_token_num: conditioning tokens of the picture's target; the first ``cls_token_num - 1`` slots are not
            rotated.

    Raises:
        VistokError: heads of another width, or stretched rotations.
    """

    bias: bool = True
    grid: int = 0
    cls_token_num: int = 1

    def __post_init__(self):
        super().__post_init__()
        if self.head_dim != self.hidden_size // self.num_attention_heads or self.rope_scaling:
            raise VistokError(
                "an EAGLE drafter has heads that share its width and plain rotations: leave head_dim and rope_scaling "
                "out, or take EAGLE-3."
            )


class EagleLayer(nn.Module):
    """Decoder layer without a norm before the attention: ``fc`` takes its place.

    Args:
        config: of the drafter.
        layout: of rotations, see ``vistok.ops.apply_rope``.
    """

    def __init__(self, config: DrafterConfig, layout: str = "half"):
        super().__init__()
        self.self_attn = Attention(config, config.hidden_size, layout=layout)
        self.mlp = MLP(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Tensor, cache: KVCache | None, visible: Tensor | None) -> Tensor:
        x = x + self.self_attn(x, rope, cache, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class EagleNetwork(Drafter):
    """Drafter of EAGLE-1, EAGLE-2 and, with a ``grid``, of LANTERN for LlamaGen; logits come from the target's head.

    Args:
        config: its shape.
    """

    config_class = EagleConfig

    def __init__(self, config: EagleConfig):
        super().__init__(config)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.bias)
        self.layers = nn.ModuleList([EagleLayer(config, "interleaved" if config.grid else "half")])

    @staticmethod
    def rotations(config: EagleConfig) -> Tensor:
        if not config.grid:
            return Drafter.rotations(config)
        rope = rope_2d(config.grid, config.grid, config.head_dim, config.rope_theta, config.cls_token_num - 1)
        return torch.cat([rope, rope.new_zeros(BEYOND, *rope.shape[1:])])

    @classmethod
    def describe(cls, entries: dict[str, Any], state: dict[str, Tensor], defaults: dict[str, Any]) -> EagleConfig:
        entries = {key: value for key, value in entries.items() if key not in COPIED}
        # Published configurations copy the target's, so the weights say which biases there are.
        biases = any(key.endswith("q_proj.bias") for key in state)
        return replace(super().describe(entries, state, defaults), bias="fc.bias" in state, qkv_bias=biases)

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        draft: Tensor | None = None,
    ) -> Tensor:
        """Predicts the features that follow.

        Args:
            features: of the target, or predicted ones, [R, T, hidden].
            tokens: the token after each feature, int64 [R, T].
            cache: where the slots are written, behind what it holds; none in training.
            slots: which rotation each slot has, int64 [R, T]; those behind the cache if None.
            draft: see ``draft_mask``.

        Returns:
            [R, T, hidden].
        """
        visible = None if cache is None else draft_mask(cache, tokens.shape[1], draft)
        if cache is not None and self.config.grid and packed_step.applies(self.fc):
            return packed_step.packed_draft(self, features, tokens, cache, slots, visible)
        x = self.fc(torch.cat([self.embed_tokens(tokens).to(features.dtype), features], -1))
        return self.layers[0](x, self._rotations(x, cache, slots), cache, visible)

    def logits(self, hidden: Tensor, head: nn.Module) -> Tensor:
        """Returns logits over the target's vocabulary, by the target's head."""
        return head(hidden)

    def token(self, draft: Tensor) -> Tensor:
        """Returns the target's ids of drafted ids: the same."""
        return draft


# EAGLE-3 has a module of its own.
__getattr__, __dir__ = lazy_attributes(
    __name__, dict.fromkeys(("Eagle3Layer", "Eagle3Network"), "vistok.models.heads.eagle3")
)
