"""EAGLE drafters: one decoder layer that predicts a target's next feature from its last one and the token that
followed.

EAGLE-1 and EAGLE-2 (arXiv 2401.15077, 2406.16858) and LANTERN's drafter for LlamaGen (arXiv 2410.03355) are ``Eagle``:
the feature is the target's final normalised state, the target's own head turns a predicted feature into logits. EAGLE-3
(arXiv 2503.01840) is ``Eagle3``: it reads three states of the target and has a head of its own, often over a smaller
vocabulary. Parameter names are those of the published checkpoints. Slot j of a drafter's sequence pairs feature j with
token j + 1.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.llamagen import RMSNorm
from vistok.ops import KVCache, apply_rope, attention, rope_1d, rope_2d
from vistok.zoo.checkpoint import load_strict, read_state_dict
from vistok.zoo.pretrained import CONFIG_FILE, WEIGHTS_FILE, Pretrained
from vistok.zoo.registry import resolve

PUBLISHED_WEIGHTS = (WEIGHTS_FILE, "pytorch_model.bin")
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

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_key_value_heads or self.num_attention_heads


class Attention(nn.Module):
    """Grouped-query attention over a cache, with LLaMA's parameter names."""

    def __init__(self, config: EagleConfig, width: int):
        super().__init__()
        self.head_dim = config.head_dim
        self.layout = "interleaved" if config.grid else "half"
        own, shared = config.num_attention_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(width, own, bias=config.qkv_bias)
        self.k_proj = nn.Linear(width, shared, bias=config.qkv_bias)
        self.v_proj = nn.Linear(width, shared, bias=config.qkv_bias)
        self.o_proj = nn.Linear(own, config.hidden_size, bias=False)

    def forward(self, x: Tensor, rope: Tensor, cache: KVCache | None, visible: Tensor | None) -> Tensor:
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (apply_rope(part, rope, self.layout).transpose(1, 2) for part in (q, k))
        v = v.transpose(1, 2)
        if cache is not None:
            k, v = cache.write(0, k, v)
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
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class _Drafter(Pretrained, nn.Module):
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
            rope = rope_1d(config.max_position_embeddings, config.head_dim, config.rope_theta)
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
        weights = next((path.parent / file for file in PUBLISHED_WEIGHTS if (path.parent / file).is_file()), None)
        if weights is None:
            weights = resolve(name, PUBLISHED_WEIGHTS[-1])
        # A published configuration describes the target's whole family; the drafter reads what shapes it.
        known = {field.name for field in fields(EagleConfig)}
        entries = defaults | {key: value for key, value in entries.items() if key in known and value is not None}
        try:
            config = EagleConfig(**entries)
        except TypeError:
            raise VistokError(f"'{path}' does not say the shape of a drafter: name the folder of a drafter.") from None
        state = read_state_dict(weights)
        # Published configurations copy the target's, so the weights say which biases there are.
        biases = any(key.endswith("q_proj.bias") for key in state)
        model = cls(replace(config, bias="fc.bias" in state, qkv_bias=biases))
        load_strict(model, model.complete(state), cls.__name__)
        return model.eval()

    def complete(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict with everything that this drafter needs."""
        return state

    def new_cache(self, rows: int, capacity: int) -> KVCache:
        """An empty cache for this many sequences and slots."""
        weight = self.embed_tokens.weight
        config = self.config
        return KVCache(1, rows, capacity, config.kv_heads, config.head_dim, weight.dtype, weight.device)

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
        x = self.fc(torch.cat([self.embed_tokens(tokens).to(features.dtype), features], -1))
        visible = None if cache is None else draft_mask(cache, x.shape[1], draft)
        return self.layers[0](x, self._rotations(x, cache, slots), cache, visible)

    def logits(self, hidden: Tensor, head: nn.Module) -> Tensor:
        """Logits over the target's vocabulary, by the target's head."""
        return head(hidden)

    def token(self, draft: Tensor) -> Tensor:
        """Target ids of drafted ids: the same."""
        return draft


class Eagle3Layer(nn.Module):
    """Decoder layer whose attention reads the normalised embedding beside the normalised feature."""

    def __init__(self, config: EagleConfig):
        super().__init__()
        self.self_attn = Attention(config, 2 * config.hidden_size)
        self.mlp = MLP(config)
        self.hidden_norm, self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(3)
        )

    def forward(self, e: Tensor, h: Tensor, rope: Tensor, cache: KVCache | None, visible: Tensor | None) -> Tensor:
        x = torch.cat([self.input_layernorm(e), self.hidden_norm(h)], -1)
        h = h + self.self_attn(x, rope, cache, visible)
        return h + self.mlp(self.post_attention_layernorm(h))


class Eagle3Network(_Drafter):
    """Drafter of EAGLE-3. Where a published file lacks ``embed_tokens``, the target's table must be given to the model
    by ``share_embedding``.
    """

    def __init__(self, config: EagleConfig):
        super().__init__(config)
        states = 3 * (config.target_hidden_size or config.hidden_size)
        drafted = config.draft_vocab_size or config.vocab_size
        self.fc = nn.Linear(states, config.hidden_size, bias=False)
        self.midlayer = Eagle3Layer(config)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, drafted, bias=False)
        if drafted != config.vocab_size:
            self.register_buffer("d2t", torch.zeros(drafted, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))

    def complete(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fill in the embedding, which most published files leave to the target, with zeros for ``share_embedding``."""
        return {"embed_tokens.weight": torch.zeros_like(self.embed_tokens.weight)} | state

    def share_embedding(self, weight: Tensor) -> None:
        """Take over the target's embedding table, [V, hidden]."""
        self.embed_tokens.weight.data = weight

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        draft: Tensor | None = None,
    ) -> Tensor:
        """As ``Eagle.forward``; features are three states of the target [R, T, 3 hidden], or predicted ones [R, T,
        hidden].
        """
        if features.shape[-1] == self.fc.in_features:
            features = self.fc(features)
        e = self.embed_tokens(tokens).to(features.dtype)
        visible = None if cache is None else draft_mask(cache, e.shape[1], draft)
        return self.midlayer(e, features, self._rotations(e, cache, slots), cache, visible)

    def logits(self, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
        """Logits over the drafted vocabulary, by the drafter's own head."""
        return self.lm_head(self.norm(hidden))

    def token(self, draft: Tensor) -> Tensor:
        """Target ids of drafted ids."""
        return draft + self.d2t[draft] if hasattr(self, "d2t") else draft
