"""EAGLE-3 (arXiv 2503.01840): a drafter that reads several inner states of its target and has an output layer of its
own, often over a smaller vocabulary.

Three layouts are published, and all load strictly: SafeAILab's, SpecForge's, and that of the ``speculators`` project
(whose heads may have several layers, norms of queries and keys, and flags that change the forward). The weights are
named as in SafeAILab's files; ``vistok.models.heads.eagle3_config`` reads the configurations.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.heads.drafter import MLP, Attention, Drafter, draft_mask
from vistok.models.heads.eagle3_config import Eagle3Config, published_config
from vistok.models.llamagen import RMSNorm
from vistok.ops import KVCache

LAYER = re.compile(r"layers\.0\.")  # what ``speculators`` calls the layer that others call ``midlayer``
# Of training alone, and met in files that a trainer wrote.
TRAINING = ("verifier_norm.weight", "verifier_lm_head.weight")


class Eagle3Layer(nn.Module):
    """Decoder layer whose attention reads the normalised embedding beside the normalised feature.

    Args:
        config: of the drafter.
        first: it reads the embedding; if not, it is a plain decoder layer with ``input_layernorm`` on the states.
    """

    def __init__(self, config: Eagle3Config, first: bool = True, index: int = 0):
        super().__init__()
        self.normed = config.norm_before_residual
        self.self_attn = Attention(config, (1 + first) * config.hidden_size, index, norm=config.qk_norm)
        self.mlp = MLP(config)
        self.input_layernorm, self.post_attention_layernorm = (
            RMSNorm(config.hidden_size, config.rms_norm_eps) for _ in range(2)
        )
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if first else None

    def forward(
        self, e: Tensor | None, h: Tensor, rope: Tensor, cache: KVCache | None, visible: Tensor | None
    ) -> Tensor:
        """Returns states of embeddings [R, T, H], None but for the first layer, and states [R, T, H]."""
        if self.hidden_norm is None:
            x = self.input_layernorm(h)
        else:
            normed = self.hidden_norm(h)
            x = torch.cat([self.input_layernorm(e), normed], -1)
            h = normed if self.normed else h
        h = h + self.self_attn(x, rope, cache, visible)
        return h + self.mlp(self.post_attention_layernorm(h))


class Eagle3Network(Drafter):
    """Drafter of EAGLE-3. Where a published file lacks ``embed_tokens``, the target's table must be given to the model
    by ``share_embedding``.

    Attributes:
        borrows: the file that it was loaded from had no embeddings.
    """

    config_class = Eagle3Config

    def __init__(self, config: Eagle3Config):
        super().__init__(config)
        width, eps = config.hidden_size, config.rms_norm_eps
        states = config.states * (config.target_hidden_size or width)
        drafted = config.draft_vocab_size or config.vocab_size
        self.borrows, self.cached_layers = False, config.num_hidden_layers
        self.fc = nn.Linear(states, width, bias=False)
        if config.norm_before_fc:
            self.input_norm = RMSNorm(states, eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(RMSNorm(states // config.states, eps) for _ in range(config.states))
        self.midlayer = Eagle3Layer(config)
        rest = range(1, config.num_hidden_layers)
        self.layers = nn.ModuleDict({str(index): Eagle3Layer(config, False, index) for index in rest})
        self.norm = RMSNorm(width, eps)
        self.lm_head = nn.Linear(width, drafted, bias=False)
        if drafted != config.vocab_size:
            self.register_buffer("d2t", torch.zeros(drafted, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))

    @classmethod
    def describe(cls, entries: dict[str, Any], state: dict[str, Tensor], defaults: dict[str, Any]) -> Eagle3Config:
        """Returns the configuration of a published file: see ``published_config``."""
        return published_config(defaults | entries, {LAYER.sub("midlayer.", name): state[name] for name in state})

    def complete(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a published state dict under our names, with zeros for the embedding that most leave to the target.

        Raises:
            VistokError: a vocabulary map of a head that drafts every token, and moves some.
        """
        state = {LAYER.sub("midlayer.", name): value for name, value in state.items() if name not in TRAINING}
        if not hasattr(self, "d2t"):  # SpecForge writes maps that change nothing
            moved, left = state.pop("d2t", torch.zeros(1)), state.pop("t2d", torch.ones(1))
            if bool(moved.any()) or not bool(left.all()):
                raise VistokError("the head drafts every token, but its map d2t moves some: its file is damaged.")
        self.borrows = "embed_tokens.weight" not in state
        return {"embed_tokens.weight": torch.zeros_like(self.embed_tokens.weight)} | state

    def share_embedding(self, weight: Tensor) -> None:
        """Takes over the target's embedding table, [V, hidden].

        Raises:
            VistokError: the target's is of another width, so the head needs a table of its own.
        """
        if weight.shape != self.embed_tokens.weight.shape:
            raise VistokError(
                f"this head has no embeddings and needs a table of {tuple(self.embed_tokens.weight.shape)}, but the "
                f"target's is {tuple(weight.shape)}: take the head of this model."
            )
        self.embed_tokens.weight.data = weight

    def read(self, states: Tensor) -> Tensor:
        """Returns the feature of several states of the target, [R, T, states * width] to [R, T, hidden]."""
        if self.config.norm_before_fc:
            states = self.input_norm(states)
        if self.config.fc_norm:
            parts = states.chunk(self.config.states, -1)
            states = torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)
        return self.fc(states)

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        draft: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """As ``EagleNetwork.forward``; features are states of the target [R, T, states * width], or predicted ones [R,
        T, hidden]. What comes back is what a drafted step reads.

        Args:
            visible: bool, broadcast to [R, 1, T, keys], instead of what cache and draft imply.
        """
        if features.shape[-1] == self.fc.in_features:
            features = self.read(features)
        x = self.states(features, tokens, cache, slots, draft, visible)
        return self.norm(x) if self.config.norm_output else x

    def states(
        self,
        features: Tensor,
        tokens: Tensor,
        cache: KVCache | None = None,
        slots: Tensor | None = None,
        draft: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Returns the last layer's states of features [R, T, hidden], before any norm."""
        e = self.embed_tokens(tokens).to(features.dtype)
        if visible is None and cache is not None:
            visible = draft_mask(cache, e.shape[1], draft)
        rope = self._rotations(e, cache, slots)
        x = self.midlayer(e, features, rope, cache, visible)
        for layer in self.layers.values():
            x = layer(None, x, rope, cache, visible)
        return x

    def logits(self, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
        """Returns logits over the drafted vocabulary behind what ``forward`` gave, by the drafter's own head."""
        return self.lm_head(hidden if self.config.norm_output else self.norm(hidden))

    def token(self, draft: Tensor) -> Tensor:
        """Returns the target's ids of drafted ids."""
        return draft + self.d2t[draft] if hasattr(self, "d2t") else draft
