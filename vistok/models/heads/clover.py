"""Clover's drafter (arXiv 2405.00263): heads in sequence, each of which knows the token that was picked before.

An augmenting block, one decoder layer, runs over the target's final features. The attention decoder then joins each
state with the token that followed: the token's embedding asks, the states of the text and of the path answer, and what
they say, with the embedding, is added to the state. A perceptron and the target's head make the next law of it. No
weights are published, so the key layout is this package's; one perceptron serves all depths.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from vistok.models.heads.drafter import MLP, Drafter, DrafterConfig, draft_mask
from vistok.models.heads.eagle import EagleLayer
from vistok.models.llamagen import RMSNorm
from vistok.ops import KVCache, apply_rope, attention


class AttentionDecoder(nn.Module):
    """Attention whose queries are embeddings of tokens, and keys and values the states in front of them."""

    def __init__(self, config: DrafterConfig):
        super().__init__()
        self.head_dim = config.head_dim
        own, shared = config.num_attention_heads * self.head_dim, config.kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, own, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, shared, bias=False)
        self.o_proj = nn.Linear(own, config.hidden_size, bias=False)

    def parts(self, e: Tensor, h: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values [R, heads, T, D] of embeddings and states [R, T, H]."""
        q = self.q_proj(e).unflatten(-1, (-1, self.head_dim))
        k, v = (part(h).unflatten(-1, (-1, self.head_dim)) for part in (self.k_proj, self.v_proj))
        q, k = (apply_rope(part, rope, "half").transpose(1, 2) for part in (q, k))
        return q, k, v.transpose(1, 2)

    def mixed(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
        """Returns what the states answer, [R, T, H]."""
        return self.o_proj(attention(q, k, v, mask=visible).transpose(1, 2).flatten(2))


class Clover(Drafter):
    """The network, with the interface of ``EagleNetwork``: slot j pairs state j with the token behind it."""

    arxiv: ClassVar[str] = "2405.00263"
    family = "clover"
    cached_layers = 2  # the augmenting block, and the attention decoder

    def __init__(self, config: DrafterConfig):
        super().__init__(config)
        self.augment = EagleLayer(config)
        self.connect = AttentionDecoder(config)
        self.embedded = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, features: Tensor, tokens: Tensor, cache: KVCache, slots: Tensor | None = None, draft: Tensor | None = None
    ) -> Tensor:
        """Returns the states behind tokens; see ``EagleNetwork.forward``. Features of drafts are states already."""
        rope, visible = self._rotations(features, cache, slots), draft_mask(cache, features.shape[1], draft)
        if draft is None:
            features = self.augment(features, rope, cache, visible)
        e = self.embed_tokens(tokens).to(features.dtype)
        q, k, v = self.connect.parts(e, features, rope)
        k, v = cache.write(1, k, v)
        return self._joined(features, e, self.connect.mixed(q, k, v, visible))

    def unrolled(self, features: Tensor, tokens: Tensor, depths: int) -> list[Tensor]:
        """Returns the states of ``depths`` heads at every place at once, as drafting forms them along the text itself.

        Args:
            features: of the target, [R, T, H].
            tokens: those behind each place, [R, T + depths - 1]: head d of place j reads token ``j + d``.
        """
        length = features.shape[1]
        places = torch.arange(length, device=features.device)
        causal = (places <= places[:, None])[None, None]
        state = self.augment(features, self.rope[:length], None, causal)
        keys, values, masks, found = [], [], [causal], []
        for depth in range(depths):
            e = self.embed_tokens(tokens[:, depth : depth + length]).to(state.dtype)
            q, k, v = self.connect.parts(e, state, self.rope[depth : depth + length])
            keys.append(k)
            values.append(v)
            if depth:  # of the states of drafts a place sees its own alone
                masks.append((places == places[:, None])[None, None])
            mixed = self.connect.mixed(q, torch.cat(keys, 2), torch.cat(values, 2), torch.cat(masks, -1))
            state = self._joined(state, e, mixed)
            found.append(state)
        return found

    def _joined(self, h: Tensor, e: Tensor, mixed: Tensor) -> Tensor:
        h = h + mixed + self.embedded(e)
        return h + self.mlp(self.norm(h))

    def logits(self, hidden: Tensor, head: nn.Module) -> Tensor:
        """Returns logits over the target's vocabulary, by the target's head."""
        return head(hidden)

    def token(self, draft: Tensor) -> Tensor:
        """Returns the target's ids of drafted ids: the same."""
        return draft
