"""EAGLE drafters: one decoder layer that predicts a target's next feature from its last one and the token that
followed.

EAGLE-1 and EAGLE-2 (arXiv 2401.15077, 2406.16858) and LANTERN's drafter for LlamaGen (arXiv 2410.03355) are
``EagleNetwork``: the feature is the target's final normalised state, the target's own head turns a predicted feature
into logits. EAGLE-3, in ``vistok.models.heads.eagle3``, shares layers, caches and loading. Parameter names are those of
the published checkpoints. Slot j of a drafter's sequence pairs feature j with token j + 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models import packed_step
from vistok.models.llamagen import RMSNorm
from vistok.ops import KVCache, apply_rope, attention, rope_1d, rope_2d
from vistok.ops.linear import joint
from vistok.ops.rope import RotaryModule
from vistok.registry import lazy_attributes
from vistok.zoo.checkpoint import load_strict, read_state_dict
from vistok.zoo.pretrained import CONFIG_FILE, WEIGHTS_FILE, Pretrained
from vistok.zoo.registry import resolve

PUBLISHED_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")
# What published EAGLE-1 and EAGLE-2 configurations copy from the target, though their one layer is as plain as ever.
IGNORED = {"num_hidden_layers", "head_dim", "rope_scaling", "qk_norm", "aux_layers"}
BEYOND = 10  # rows without rotation behind the grid, for drafts that run past the picture
D = TypeVar("D", bound="_Drafter")


@dataclass(frozen=True)
class EagleConfig:
    """Shape of a drafter, under the names of the published configuration.

    Attributes:
        vocab_size, hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, rms_norm_eps: as in LLaMA.
        rope_theta, max_position_embeddings: rotary base, and slots that a text drafter has rotations for.
        bias: whether ``fc`` has a bias.
        qkv_bias: whether the attention's projections have one (Qwen2).
        grid: side of the picture's token grid for two-dimensional rotations; 0 for text.
        cls_token_num: conditioning tokens of the picture's target; the first ``cls_token_num - 1`` slots are not
            rotated.
        draft_vocab_size: tokens that EAGLE-3 may draft; 0 for all.
        target_hidden_size: width of the target's states where EAGLE-3 has another one; 0 for the same.
        head_dim: width of an attention head; 0 for an equal share of the hidden width.
        num_hidden_layers, qk_norm: layers of EAGLE-3, and whether they norm queries and keys.
        norm_before_residual: the residual of EAGLE-3's first layer is the normed feature.
        norm_before_fc, fc_norm: EAGLE-3 norms the target's states together, or each, before ``fc``.
        norm_output: what a drafted step of EAGLE-3 reads is normed.
        aux_layers: which hidden states of the target EAGLE-3 reads, as transformers counts them; those that enter the
            layers 2, n // 2 and n - 3 of n if empty.
        rope_scaling: how rotations are stretched, as transformers says it.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int = 0
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 2048
    bias: bool = True
    qkv_bias: bool = False
    grid: int = 0
    cls_token_num: int = 1
    draft_vocab_size: int = 0
    target_hidden_size: int = 0
    head_dim: int = 0
    num_hidden_layers: int = 1
    qk_norm: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norm_output: bool = False
    aux_layers: tuple[int, ...] = ()
    rope_scaling: dict[str, Any] | None = None

    def __post_init__(self):
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)
        object.__setattr__(self, "aux_layers", tuple(self.aux_layers))

    @property
    def states(self) -> int:
        """How many states of the target EAGLE-3 reads."""
        return len(self.aux_layers) or 3

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads


def text_rope(config: EagleConfig, length: int) -> Tensor:
    """Rotations of a text of ``length`` slots, float32 [length, head_dim // 2, 2]."""
    if not config.rope_scaling:
        return rope_1d(length, config.head_dim, config.rope_theta)
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    shape = LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=config.rope_scaling | {"rope_theta": config.rope_theta},
    )
    frequencies, scale = ROPE_INIT_FUNCTIONS[config.rope_scaling["rope_type"]](shape, "cpu", seq_len=length)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()], -1) * scale


class Attention(nn.Module):
    """Grouped-query attention over a cache, with LLaMA's parameter names."""

    def __init__(self, config: EagleConfig, width: int, index: int = 0):
        super().__init__()
        self.head_dim, self.index = config.head_dim, index
        self.layout = "interleaved" if config.grid else "half"
        own, shared = config.num_attention_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, own, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, shared, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, shared, bias=config.qkv_bias)
        self.o_proj = nn.Linear(own, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(self.head_dim, config.rms_norm_eps) for _ in range(2))

    def forward(self, x: Tensor, rope: Tensor, cache: KVCache | None, visible: Tensor | None) -> Tensor:
        qkv = joint(x, self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in qkv)
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        turned = apply_rope(torch.cat([q, k], 2), rope, self.layout).transpose(1, 2)
        q, k, v = turned[:, : q.shape[2]], turned[:, q.shape[2] :], v.transpose(1, 2)
        if cache is not None:
            k, v = cache.write(self.index, k, v)
        mixed = attention(q, k, v, mask=visible, causal=visible is None)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU with LLaMA's parameter names."""

    def __init__(self, config: EagleConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = joint(x, self.gate_proj, self.up_proj)
        return self.down_proj(F.silu(gate) * up)


class _Drafter(Pretrained, RotaryModule):
    """What the drafters share: rotations, caches, masks and loading."""

    config_class = EagleConfig

    def __init__(self, config: EagleConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.grid:
            prefix = config.cls_token_num - 1
            rope = rope_2d(config.grid, config.grid, config.head_dim, config.rope_theta, prefix)
            rope = torch.cat([rope, rope.new_zeros(BEYOND, *rope.shape[1:])])
        else:
            rope = text_rope(config, config.max_position_embeddings)
        self.register_buffer("rope", rope, persistent=False)

    @classmethod
    def from_pretrained(cls: type[D], name: str | Path, **defaults) -> D:
        """Load a drafter strictly: ``config.json``, and ``model.safetensors`` or ``pytorch_model.bin`` beside it.

        Args:
            name: an embedded drafter, a folder, or a hub id such as ``jadohu/llamagen_drafter``.
            defaults: what a published configuration does not say but the target knows: ``grid``, ``cls_token_num``.

        Returns:
            The drafter in evaluation mode, float32, on the CPU.

        Raises:
            VistokError: the name leads nowhere, or the weights are not those of this drafter.
        """
        path = resolve(name, CONFIG_FILE)
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise VistokError(f"'{path}' is not JSON: name the folder of a drafter.") from None
        if not isinstance(entries, dict) or "hidden_size" not in entries.get("transformer_layer_config", entries):
            raise VistokError(f"'{path}' does not say the shape of a drafter: name the folder of a drafter.")
        weights = next((path.parent / file for file in PUBLISHED_WEIGHTS if (path.parent / file).is_file()), None)
        if weights is None:
            weights = resolve(name, PUBLISHED_WEIGHTS[-1])
        state = read_state_dict(weights)
        model = cls(cls.describe(entries, state, defaults))
        load_strict(model, model.complete(state), cls.__name__)
        return model.eval()

    @classmethod
    def describe(cls, entries: dict[str, Any], state: dict[str, Tensor], defaults: dict[str, Any]) -> EagleConfig:
        """The configuration of a published file with these entries and weights.

        Raises:
            VistokError: it does not say the shape of a drafter.
        """
        # A published configuration describes the target's whole family; the drafter reads what shapes it.
        known = {field.name for field in fields(EagleConfig)} - IGNORED
        entries = defaults | {key: value for key, value in entries.items() if key in known and value is not None}
        # Published configurations copy the target's, so the weights say which biases there are.
        biases = any(key.endswith("q_proj.bias") for key in state)
        try:
            return replace(EagleConfig(**entries), bias="fc.bias" in state, qkv_bias=biases)
        except TypeError:
            raise VistokError(
                "the drafter's config.json does not say the shape of a drafter: name the folder of a drafter."
            ) from None

    def complete(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict with everything that this drafter needs."""
        return state

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for this many sequences and slots."""
        weight = self.embed_tokens.weight
        config = self.config
        layers = config.num_hidden_layers
        return KVCache(layers, rows, capacity, config.kv_heads, config.head_dim, weight.dtype, weight.device)

    def _rotations(self, x: Tensor, cache: KVCache | None, slots: Tensor | None) -> Tensor:
        if slots is None:
            slots = torch.arange(x.shape[1], device=x.device)
            slots = slots if cache is None else cache.lengths[:, None] + slots
        return self.rope[slots.clamp(max=len(self.rope) - 1)]


def draft_mask(cache: KVCache, new: int, draft: Tensor | None) -> Tensor:
    """Who sees whom when ``new`` slots are written behind a cache.

    Args:
        cache: before the slots are written.
        new: slots T.
        draft: bool [R, T, N], which of the last N slots (the new ones included) each new one sees; all slots before
            them are seen. None: causal.

    Returns:
        bool [R, 1, T, keys].
    """
    if draft is not None and cache.common_length is not None:
        return F.pad(draft, (cache.bound + new - draft.shape[2], 0), value=True)[:, None]
    rows = torch.arange(min(cache.bound + new, cache.capacity), device=cache.lengths.device)
    own = rows - cache.lengths[:, None]
    if draft is None:
        return (own[:, None] <= torch.arange(new, device=rows.device)[:, None])[:, None]
    governed = draft.shape[2]
    own = own + governed - new
    inside = (own >= 0) & (own < governed)
    seen = draft.gather(2, own.clamp(0, governed - 1)[:, None].expand(-1, new, -1)) & inside[:, None]
    return (seen | (own < 0)[:, None])[:, None]


class EagleLayer(nn.Module):
    """Decoder layer without a norm before the attention: ``fc`` takes its place."""

    def __init__(self, config: EagleConfig):
        super().__init__()
        self.self_attn = Attention(config, config.hidden_size)
        self.mlp = MLP(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: Tensor, cache: KVCache | None, visible: Tensor | None) -> Tensor:
        x = x + self.self_attn(x, rope, cache, visible)
        return x + self.mlp(self.post_attention_layernorm(x))


class EagleNetwork(_Drafter):
    """Drafter of EAGLE-1, EAGLE-2 and, with a ``grid``, of LANTERN for LlamaGen; logits come from the target's head."""

    def __init__(self, config: EagleConfig):
        super().__init__(config)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.bias)
        self.layers = nn.ModuleList([EagleLayer(config)])

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        draft: Tensor | None = None,
    ) -> Tensor:
        """Predict the features that follow.

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
        """Logits over the target's vocabulary, by the target's head."""
        return head(hidden)

    def token(self, draft: Tensor) -> Tensor:
        """Target ids of drafted ids: the same."""
        return draft


# EAGLE-3 has a module of its own.
__getattr__, __dir__ = lazy_attributes(
    __name__, dict.fromkeys(("Eagle3Layer", "Eagle3Network"), "vistok.models.heads.eagle3")
)
