"""What drafters of LLaMA's layers share: their shape, attention and perceptron, caches and masks, and strict loading.

Slot j of a drafter's sequence pairs the target's feature j with token j + 1. Parameter names are LLaMA's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.llamagen import RMSNorm
from vistok.ops import KVCache, apply_rope, attention, rope_1d
from vistok.ops.linear import joint, swiglu
from vistok.ops.rope import RotaryModule
from vistok.zoo.checkpoint import load_strict, read_state_dict
from vistok.zoo.pretrained import CONFIG_FILE, WEIGHTS_FILE, Pretrained
from vistok.zoo.registry import resolve

PUBLISHED_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")
D = TypeVar("D", bound="Drafter")


@dataclass(frozen=True)
class DrafterConfig:
    """Shape of a drafter, under the names of LLaMA's configuration.

    Attributes:
        vocab_size, hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, rms_norm_eps: as in LLaMA.
        rope_theta, max_position_embeddings: rotary base, and slots that a text drafter has rotations for.
        qkv_bias: whether the attention's projections have a bias (Qwen2).
        head_dim: width of an attention head; 0 for an equal share of the hidden width.
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
    qkv_bias: bool = False
    head_dim: int = 0
    rope_scaling: dict[str, Any] | None = None

    def __post_init__(self):
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)

    @property
    def kv_heads(self) -> int:
        """Number of key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads


def text_rope(config: DrafterConfig, length: int) -> Tensor:
    """Returns the rotations of a text of ``length`` slots, float32 [length, head_dim // 2, 2]."""
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
    """Grouped-query attention over a cache, with LLaMA's parameter names.

    Args:
        config: of the drafter.
        width: of what comes in.
        index: the layer's number in the cache.
        layout: of rotations, see ``vistok.ops.apply_rope``.
        norm: queries and keys are normed, head by head.
    """

    def __init__(self, config: DrafterConfig, width: int, index: int = 0, layout: str = "half", norm: bool = False):
        super().__init__()
        self.head_dim, self.index, self.layout = config.head_dim, index, layout
        own, shared = config.num_attention_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, own, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, shared, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, shared, bias=config.qkv_bias)
        self.o_proj = nn.Linear(own, config.hidden_size, bias=False)
        if norm:
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

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(x, self.gate_proj, self.up_proj))


def draft_mask(cache: KVCache, new: int, draft: Tensor | None) -> Tensor:
    """Returns who sees whom when ``new`` slots are written behind a cache.

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


class Drafter(Pretrained, RotaryModule):
    """Base of the drafters: an embedding, rotations, caches and loading.

    Args:
        config: its shape.
    """

    config_class: ClassVar[type[DrafterConfig]] = DrafterConfig
    cached_layers = 1  # layers that keep keys and values

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.register_buffer("rope", self.rotations(config), persistent=False)

    @staticmethod
    def rotations(config: Any) -> Tensor:
        """Returns the rotations of all slots, float32 [slots, head_dim // 2, 2]."""
        return text_rope(config, config.max_position_embeddings)

    @classmethod
    def from_pretrained(cls: type[D], name: str | Path, **defaults) -> D:
        """Loads a drafter strictly: ``config.json``, and ``model.safetensors`` or ``pytorch_model.bin`` beside it.

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
        model = cls.untrained(cls.describe(entries, state, defaults))
        load_strict(model, model.complete(state), cls.__name__)
        return model.eval()

    @classmethod
    def describe(cls, entries: dict[str, Any], state: dict[str, Tensor], defaults: dict[str, Any]) -> DrafterConfig:
        """Returns the configuration that a file with these entries and weights has.

        Raises:
            VistokError: it does not say the shape of a drafter.
        """
        # A published configuration describes the target's whole family; the drafter reads what shapes it.
        known = {field.name for field in fields(cls.config_class)}
        entries = defaults | {key: value for key, value in entries.items() if key in known and value is not None}
        try:
            return cls.config_class(**entries)
        except TypeError:
            raise VistokError(
                "the drafter's config.json does not say the shape of a drafter: name the folder of a drafter."
            ) from None

    def complete(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a published state dict with everything that this drafter needs."""
        return state

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """Returns an empty cache for this many sequences and slots."""
        weight, shape = self.embed_tokens.weight, (self.config.kv_heads, self.config.head_dim)
        return KVCache(self.cached_layers, rows, capacity, *shape, weight.dtype, weight.device)

    def _rotations(self, x: Tensor, cache: KVCache | None, slots: Tensor | None) -> Tensor:
        if slots is None:
            slots = torch.arange(x.shape[1], device=x.device)
            slots = slots if cache is None else cache.lengths[:, None] + slots
        return self.rope[slots.clamp(max=len(self.rope) - 1)]
