"""LlamaGen: a Llama-style decoder that predicts image codes in raster order (Sun et al., arXiv 2406.06525).

The sequence is a conditioning prefix of T tokens (one class token, or up to 120 projected text features) and then the
g*g image codes. Parameter names are those of the published ``c2i_*.pt`` and ``t2i_*.pt`` files.

The published rotary table is zero, not the identity, on the prefix: prefix queries and keys vanish. The prefix
therefore attends by a running mean of its values, and an image token sees all of it as ONE key of logit
log(visible tokens). Cached decoding uses this exactly: the whole prefix costs one cached row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError, unknown_name
from vistok.models import packed_step
from vistok.models.interface import TokenSpec
from vistok.models.llamagen.config import PRESETS, LlamaGenConfig
from vistok.models.llamagen.layers import Block, CaptionEmbedder, LabelEmbedder, RMSNorm
from vistok.ops import KVCache, attention, collapse_prefix, rope_1d, rope_2d
from vistok.ops.rope import RotaryModule, rope_places
from vistok.zoo.pretrained import Pretrained

# Entries of published files that carry no weights: rotary tables of older files and caches saved by accident.
DROPPED_KEYS = (r"freqs_cis", r"layers\.\d+\.attention\.kv_cache\.[kv]_cache")


@dataclass
class DecodeState:
    """What cached decoding carries from step to step.

    Attributes:
        cache: keys and values; row 0 is the collapsed prefix, row 1 + k is image token k.
        bias: additive logits of the cached keys, [B, 1, 1, S]: log of the prefix length at row 0. None where it is
            zero.
        added: see ``add_streams``.
    """

    cache: KVCache
    bias: Tensor | None
    added: Mapping[int, Tensor] = field(default_factory=dict)

    def narrow(self, batch: int) -> DecodeState:
        """Returns the first ``batch`` sequences alone, sharing memory."""
        bias = None if self.bias is None else self.bias[:batch]
        return DecodeState(self.cache.narrow(batch), bias, {layer: x[:batch] for layer, x in self.added.items()})


def add_streams(x: Tensor, added: Mapping[int, Tensor], layer: int, predicted: Tensor) -> Tensor:
    """Returns the residual stream [B, T, dim] at the input of a layer, with what a control adds to it.

    Args:
        x: the stream.
        added: by layer, what is added where an image token is predicted, [B, n, dim].
        layer: which.
        predicted: the image token that each position predicts, [T] or [B, T]; negative where it is none.
    """
    if layer not in added:
        return x
    predicted = predicted.expand(len(x), -1)[..., None]
    stream = added[layer].take_along_dim(predicted.clamp(0, added[layer].shape[1] - 1), dim=1)
    return x + torch.where(predicted >= 0, stream, 0)


class LlamaGen(Pretrained, RotaryModule):
    """The published GPT, class- or text-conditional.

    Args:
        config: its shape.

    Raises:
        VistokError: ``model_type`` is neither ``c2i`` nor ``t2i``, or a grid's ``block_size`` is not a square.
    """

    family = "llamagen"
    config_class = LlamaGenConfig
    presets = PRESETS
    dropped_keys = DROPPED_KEYS
    published_entries: ClassVar = {"max_batch_size": None, "max_seq_len": None}  # of the reference's TransformerHF

    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        if config.model_type not in ("c2i", "t2i"):
            raise unknown_name("LlamaGen model type", config.model_type, ["c2i", "t2i"])
        if config.layout not in ("grid", "sequence"):
            raise unknown_name("LlamaGen layout", config.layout, ["grid", "sequence"])
        if config.layout == "grid" and config.grid**2 != config.block_size:
            raise VistokError(
                f"LlamaGen paints square grids, but block_size {config.block_size} is not a square number."
            )
        if config.places and (config.layout == "grid" or len(config.places) != config.block_size):
            raise VistokError(
                f"LlamaGen's places are those of the {config.block_size} tokens of a sequence, got "
                f"{len(config.places)} in a {config.layout}."
            )
        self.config = config
        embedder = LabelEmbedder if config.model_type == "c2i" else CaptionEmbedder
        self.cls_embedding = embedder(config)
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        rate = config.drop_path_rate / max(1, config.n_layer - 1)
        self.layers = nn.ModuleList(Block(config, rate * i) for i in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        if config.layout == "grid":
            rope = rope_2d(config.grid, config.grid, config.head_dim, config.rope_base, prefix=config.cls_token_num)
        elif config.places:
            rope = rope_places(
                torch.tensor(config.places), config.head_dim, config.rope_base, prefix=config.cls_token_num
            )
        else:
            rope = rope_1d(config.block_size, config.head_dim, config.rope_base, prefix=config.cls_token_num)
        self.register_buffer("rope", rope, persistent=False)
        self.apply(self._init)
        nn.init.zeros_(self.output.weight)

    # What samplers and pipelines ask a generator, see ``vistok.models.interface``.

    @property
    def tokens(self) -> TokenSpec:
        """The codes that it draws."""
        return TokenSpec("codes", self.config.vocab_size, self.config.block_size, self.config.layout)

    @property
    def conditional_on(self) -> str:
        """``class`` or ``text``."""
        return "class" if self.config.model_type == "c2i" else "text"

    @property
    def classes(self) -> int:
        """How many classes it knows; 0 of a text-conditional model."""
        return self.config.num_classes if self.conditional_on == "class" else 0

    @property
    def text_width(self) -> int:
        """Width of the text features that it reads; 0 of a class-conditional model."""
        return 0 if self.conditional_on == "class" else self.config.caption_dim

    @property
    def width(self) -> int:
        """Width of the features that its output layer reads."""
        return self.config.dim

    @property
    def prefix(self) -> int:
        """Conditioning tokens before the image's."""
        return self.config.cls_token_num

    def image_tokens(self, drawn: Tensor) -> Tensor:
        """Returns codes [B, n] as its tokenizer decodes them: a grid [B, h, w], or the sequence."""
        return drawn if self.config.layout == "sequence" else drawn.unflatten(1, (-1, self.config.grid))

    def stop_at(self, tokens: int) -> None:
        """Draws only the first ``tokens`` of a sequence from now on; they are the first of a longer draw.

        Raises:
            VistokError: the tokens are a grid, or there are not so many.
        """
        if self.config.layout == "grid":
            raise VistokError("this model paints a grid of tokens as a whole: leave the number of tokens out.")
        if not 1 <= tokens <= self.config.block_size:
            raise VistokError(f"this model draws 1 to {self.config.block_size} tokens, got {tokens}.")
        self.config = replace(self.config, block_size=tokens, places=self.config.places[:tokens])

    def _init(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    # Conditions

    def null_condition(self, batch: int) -> Tensor:
        """Returns the condition "nothing asked for": labels [B] (c2i) or features [B, T, caption_dim] (t2i)."""
        if self.config.model_type == "c2i":
            return torch.full((batch,), self.config.num_classes, device=self.rope.device)
        return self.cls_embedding.uncond_embedding.expand(batch, -1, -1)

    def draw_dropped(self, batch: int) -> Tensor:
        """Returns which samples train without condition, each with probability ``class_dropout_prob``, bool [B]."""
        return torch.rand(batch, device=self.rope.device) < self.config.class_dropout_prob

    def drop_condition(self, condition: Tensor, dropped: Tensor) -> Tensor:
        """Returns conditions, of the samples ``dropped``, bool [B], the null condition."""
        dropped = dropped.view(-1, *[1] * (condition.ndim - 1))
        return torch.where(dropped, self.null_condition(len(condition)).to(condition.dtype), condition)

    # Training

    def forward(self, tokens: Tensor, condition: Tensor, mask: Tensor | None = None) -> Tensor:
        """Returns the logits of all image tokens, teacher-forced.

        Args:
            tokens: image codes that are fed, int64 [B, n] with n < block_size (all but the last, in training).
            condition: labels int64 [B] or text features [B, T, caption_dim]. In training, some are dropped at random.
            mask: which text features are real, [B, T]; all if None.

        Returns:
            [B, n + 1, V]: entry k predicts image token k.
        """
        return self.head(self.norm(self.states(tokens, condition, mask)[-1]))

    def states(
        self,
        tokens: Tensor,
        condition: Tensor,
        mask: Tensor | None = None,
        dropped: Tensor | None = None,
        added: Mapping[int, Tensor] | None = None,
    ) -> list[Tensor]:
        """Returns the residual stream behind every layer, [B, n + 1, dim] each.

        Args:
            tokens, condition, mask: as of ``forward``.
            dropped: in training, whose conditions are dropped, bool [B]; ``draw_dropped`` decides if None.
            added: see ``add_streams``.
        """
        if self.training and self.config.class_dropout_prob > 0:
            dropped = self.draw_dropped(len(condition)) if dropped is None else dropped
            condition = self.drop_condition(condition, dropped)
        prefix = self.cls_embedding(condition)
        x = torch.cat([prefix, self.tok_embeddings(tokens)], 1)
        x = F.dropout(x, self.config.token_dropout_p, self.training)
        rope, visible = self.rope[: x.shape[1]], self._full_mask(x, mask)
        predicted = torch.arange(x.shape[1], device=x.device) - (prefix.shape[1] - 1)
        states = []
        for i, layer in enumerate(self.layers):
            x = layer(add_streams(x, added or {}, i, predicted), rope, visible)
            states.append(x[:, prefix.shape[1] - 1 :])
        return states

    @staticmethod
    def _full_mask(x: Tensor, mask: Tensor | None) -> Tensor:
        """Causal, without padded text columns, with the diagonal, [B or 1, 1, S, S]."""
        length = x.shape[1]
        visible = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()[None]
        if mask is not None:
            columns = F.pad(mask.bool(), (0, length - mask.shape[1]), value=True)
            visible = visible & columns[:, None, :] | torch.eye(length, dtype=torch.bool, device=x.device)
        return visible[:, None]

    # Cached decoding

    def new_state(self, batch: int, extra: int = 0) -> DecodeState:
        """Returns an empty state for ``batch`` sequences, with room for ``extra`` draft rows behind the image."""
        config = self.config
        rows = 1 + self.tokens.length + extra
        weight = self.tok_embeddings.weight
        kv_heads = config.n_kv_head or config.n_head
        # On a CPU attention of few queries is faster in float32, even if it reads twice as much.
        dtype = torch.promote_types(weight.dtype, torch.float32) if weight.device.type == "cpu" else weight.dtype
        cache = KVCache(config.n_layer, batch, rows, kv_heads, config.head_dim, dtype, weight.device)
        return DecodeState(cache, None)

    def prefill(self, condition: Tensor, state: DecodeState, mask: Tensor | None = None) -> Tensor:
        """Runs the prefix and leaves it in the state as one row.

        Args:
            condition: labels [B] or text features [B, T, caption_dim].
            state: an empty state of B sequences.
            mask: which text features are real, [B, T]; all if None.

        Returns:
            Final hidden states of the prefix [B, T, dim]; the last one predicts image token 0 (see ``head``).
        """
        x = self.cls_embedding(condition)
        batch, length = x.shape[:2]
        seen = torch.ones(batch, length, device=x.device) if mask is None else mask.to(x.device).float()
        # A padded token still sees itself: its own value enters its own mean only.
        total = (seen.cumsum(1) + (1 - seen))[:, None, :, None]
        weight = seen[:, None, :, None]
        predicted = torch.arange(1 - length, 1, device=x.device)
        for i, layer in enumerate(self.layers):
            x = add_streams(x, state.added, i, predicted)
            values = layer.attention.values(layer.attention_norm(x))
            mean = ((values * weight).cumsum(2) + values * (1 - weight)) / total
            mean = mean.to(values.dtype).repeat_interleave(layer.attention.heads // values.shape[1], 1)
            x = layer.residual(x, layer.attention.merge(mean))
            row, bias = collapse_prefix(values, seen.bool())
            state.cache.write(i, torch.zeros_like(row), row)
        state.cache.advance(1)
        if length > 1:
            state.bias = x.new_zeros(batch, 1, 1, state.cache.capacity)
            state.bias[:, 0, 0, 0] = bias
        return self.norm(x)

    def decode(self, tokens: Tensor, positions: Tensor, state: DecodeState, ancestors: Tensor | None = None) -> Tensor:
        """Runs new image tokens behind the cached ones; the caller then keeps them with ``cache.advance`` or
        ``cache.commit``.

        Args:
            tokens: int64 [B, N].
            positions: index of each token in the image, [N] for all sequences or [B, N].
            state: where the tokens' keys and values go.
            ancestors: bool [B, N, N], which new tokens each new token sees (itself included); causal if None.

        Returns:
            Final hidden states [B, N, dim]; entry j predicts the token after token j (see ``head``).
        """
        visible = self._decode_mask(tokens, state, ancestors)
        if packed_step.applies(self.layers[0].attention.wqkv):
            return packed_step.packed_step(self, tokens, positions, state, visible)
        x = self.tok_embeddings(tokens)
        rope = self.rope[self.config.cls_token_num + positions]
        for i, layer in enumerate(self.layers):
            x = add_streams(x, state.added, i, positions + 1)
            q, k, v = layer.project(x, rope)
            keys, values = state.cache.write(i, k, v)
            mixed = attention(q.to(keys.dtype), keys, values, mask=visible).to(x.dtype)
            x = layer.residual(x, layer.attention.merge(mixed))
        return self.norm(x)

    def compile_blocks(self, **options) -> None:
        """Compiles what the blocks compute around their attention, one graph for all layers and each number of tokens.

        The cache and the attention over it stay as they are: their shapes change from step to step.

        Args:
            **options: of ``torch.compile``.
        """
        for layer in self.layers:
            layer.project = torch.compile(layer.project, **options)
            layer.residual = torch.compile(layer.residual, **options)

    def head(self, hidden: Tensor) -> Tensor:
        """Returns logits [..., V] of hidden states [..., dim]."""
        return self.output(hidden)

    @staticmethod
    def _decode_mask(tokens: Tensor, state: DecodeState, ancestors: Tensor | None) -> Tensor | None:
        cache, (batch, new), device = state.cache, tokens.shape, tokens.device
        keys = min(cache.bound + new, cache.capacity)
        bias = None if state.bias is None else state.bias[..., :keys]
        common = cache.common_length
        if common is not None and new == 1:
            return bias
        if ancestors is None:
            ancestors = torch.ones(new, new, dtype=torch.bool, device=device).tril().expand(batch, -1, -1)
        if common is not None:
            visible = F.pad(ancestors, (common, 0), value=True)[:, None]
        else:
            row = torch.arange(keys, device=device)
            own = row - cache.lengths[:, None]  # [B, keys]: number of the new token in a row, negative where it is old
            inside = (own >= 0) & (own < new)
            visible = ancestors.gather(2, own.clamp(0, new - 1)[:, None].expand(-1, new, -1)) & inside[:, None]
            visible = (visible | (own < 0)[:, None])[:, None]  # [B, 1, N, keys]
        return visible if bias is None else bias.masked_fill(~visible, -torch.inf)
