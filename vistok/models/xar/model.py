"""xAR: next-X prediction by flow matching (Ren et al., arXiv 2502.20388).

A picture's tokens are divided into entities, such as cells of 8x8 tokens. One transformer in two halves sees an entity
and all earlier ones, and tells the velocity from noise to the entity's latents. It is trained with noise in the earlier
entities as well, so that it forgives its own mistakes. Parameter names are those of the published checkpoints; their
tables of positions and their mask follow from the shape and are computed.

Two things differ from the released code, neither in what is computed: grid, entities, patches and channels are free,
and a finished entity enters the cache in a pass of its own, so that no pass needs a mask and all have one shape.

With captions in the place of classes, which the paper does not have, the features of the words are tokens before the
first entity, which all entities see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.latents import LatentConfig, LatentFamily, LatentGenerator
from vistok.models.llamagen import RMSNorm
from vistok.models.mar.head import TimeEmbed
from vistok.models.modulation import modulation
from vistok.models.xar.entities import parse_entities
from vistok.ops import KVCache, apply_rope, attention
from vistok.ops.rope import RotaryModule, rope_places

EPS = 1e-6


@dataclass(frozen=True)
class XARConfig(LatentConfig):
    """Shape of an xAR, under the names of the published configuration.

    Attributes:
        entity: what is drawn at a time, see ``vistok.models.xar.entities``.
        embed_dim, num_heads: of both halves.
        encoder_depth, decoder_depth: blocks of each half.
        mlp_ratio: width of the gated MLP over ``embed_dim``, before the factor 2/3 that its second gate costs.
        class_num: classes; one more row of the table is no class.
        caption_dim: width of the text features that it reads in the place of classes; 0 of a model of classes.
        caption_tokens: text features T of a caption; 0 of a model of classes.
        modulation_rank: dimensions of the conditions from which each block's modulations are made, few of which are
            enough for times alone; 0 is all, as published.
        label_drop_prob: share of training samples without a class or a caption.
        attn_dropout, proj_dropout: in training.
    """

    entity: str = "cell:8"
    embed_dim: int = 768
    num_heads: int = 12
    encoder_depth: int = 8
    decoder_depth: int = 8
    mlp_ratio: float = 4.0
    class_num: int = 1000
    caption_dim: int = 0
    caption_tokens: int = 0
    modulation_rank: int = 0
    label_drop_prob: float = 0.1
    attn_dropout: float = 0.1
    proj_dropout: float = 0.1


PRESETS: dict[str, XARConfig] = {
    "xAR-B": XARConfig(),
    "xAR-L": XARConfig(embed_dim=1024, num_heads=16, encoder_depth=16, decoder_depth=16),
    "xAR-H": XARConfig(embed_dim=1280, num_heads=16, encoder_depth=20, decoder_depth=20),
}


class Attention(nn.Module):
    """Multi-head self-attention with rotated queries and keys."""

    def __init__(self, config: XARConfig):
        super().__init__()
        self.heads, self.attn_dropout, self.proj_dropout = config.num_heads, config.attn_dropout, config.proj_dropout
        self.qkv = nn.Linear(config.embed_dim, 3 * config.embed_dim)
        self.proj = nn.Linear(config.embed_dim, config.embed_dim)

    def project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys, rotated, and values, [B, H, n, d] each."""
        qkv = self.qkv(x).unflatten(-1, (3 * self.heads, -1))  # [B, n, 3 H, d]
        turned = apply_rope(qkv[:, :, : 2 * self.heads], rope)
        q, k = turned.transpose(1, 2).chunk(2, 1)
        return q, k, qkv[:, :, 2 * self.heads :].transpose(1, 2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        """Attention and output projection, [B, n, E]."""
        dropout = self.attn_dropout if self.training else 0.0
        mixed = attention(q, k, v, mask=visible, dropout=dropout)
        return F.dropout(self.proj(mixed.transpose(1, 2).flatten(2)), self.proj_dropout, self.training)


class GatedMLP(nn.Module):
    """A GELU-gated MLP."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1_g = nn.Linear(width, hidden)
        self.fc1_x = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1_g(x)) * self.fc1_x(x))


class Block(nn.Module):
    """Transformer block, modulated by the condition of each entity."""

    def __init__(self, config: XARConfig):
        super().__init__()
        width = config.embed_dim
        self.attn = Attention(config)
        self.mlp = GatedMLP(width, int(width * config.mlp_ratio * 2 / 3))
        self.ada_lin = modulation(width, 6, config.modulation_rank)

    def modulation(self, condition: Tensor, entity: Tensor | None) -> tuple[Tensor, ...]:
        """Two gates, two scales and two shifts, [B, 1 or n, E] each.

        Args:
            condition: [B, K, E].
            entity: which of the K conditions each token has, int64 [n]; None where there is one.
        """
        each = self.ada_lin(condition)
        each = each if entity is None else each.index_select(1, entity)
        return each.chunk(6, dim=-1)

    def forward(
        self, x: Tensor, modulation: tuple[Tensor, ...], rope: Tensor, visible: Tensor | None, kept: _Kept | None
    ) -> Tensor:
        gate1, gate2, scale1, scale2, shift1, shift2 = modulation
        q, k, v = self.attn.project(_rms(x) * (1 + scale1) + shift1, rope)
        if kept is not None:
            k, v = kept.cache.write(kept.layer, k, v)
        x = x + gate1 * self.attn.mix(q, k, v, visible)
        return x + gate2 * self.mlp(_rms(x) * (1 + scale2) + shift2)


@dataclass(frozen=True)
class _Kept:
    """Where a block's keys and values go."""

    cache: KVCache
    layer: int


def _rms(x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), x.shape[-1:], eps=EPS).to(x.dtype)


class XAR(LatentGenerator, RotaryModule):
    """The published xAR of classes, or one of captions.

    Tokens are scaled latents; a sequence [B, N, D] has them entity by entity. Values of a condition are classes int64
    [B], or text features [B, T, caption_dim], which are zero where there is no word.

    Args:
        config: its shape.

    Raises:
        VistokError: the picture's side is not a whole number of tokens, the entity does not divide it, or captions have
            a width and no length or the other way about.
    """

    family = "xar"
    config_class = XARConfig
    presets = PRESETS
    dropped_keys = (r"mask", r"(en|de)coder_blocks\.\d+\.attn\.rope\.freqs(_cos|_sin)?")

    def __init__(self, config: XARConfig):
        super().__init__(config)
        if bool(config.caption_dim) != bool(config.caption_tokens):
            raise VistokError("an xAR of captions has both caption_dim and caption_tokens; one of classes has neither.")
        self.entities = parse_entities(config.entity, config.grid)
        width, prefix = config.embed_dim, config.caption_tokens
        count = prefix + sum(self.entities.sizes)
        if prefix:
            self.cap_proj = nn.Linear(config.caption_dim, width)
        else:
            self.class_emb = nn.Embedding(config.class_num + 1, width)
        self.time_embed = TimeEmbed(width)
        self.z_proj = nn.Linear(config.token_dim, width)
        self.z_proj_ln = RMSNorm(width, EPS)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, count, width))
        self.encoder_blocks = nn.ModuleList(Block(config) for _ in range(config.encoder_depth))
        self.encoder_norm = RMSNorm(width, EPS)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, count, width))
        self.decoder_blocks = nn.ModuleList(Block(config) for _ in range(config.decoder_depth))
        self.decoder_norm = RMSNorm(width, EPS)
        self.pred = nn.Linear(width, config.token_dim)
        places = F.pad(self.entities.places, (0, 0, prefix, 0))  # words are not turned
        self.register_buffer("rope", rope_places(places, width // config.num_heads), persistent=False)
        self.register_buffer("numbers", self.entities.numbers, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        closed = {p for block in (*self.encoder_blocks, *self.decoder_blocks) for p in block.ada_lin[-1].parameters()}
        small = ("_learned", "class_emb.weight", "time_embed.mlp.0.weight", "time_embed.mlp.2.weight")
        for name, parameter in self.named_parameters():
            if name.endswith(small):
                nn.init.normal_(parameter, std=0.02)
            if parameter in closed or name.startswith("pred."):
                nn.init.zeros_(parameter)

    # What samplers and pipelines ask a generator, see ``vistok.models.interface``.

    @property
    def conditional_on(self) -> str:
        """``class`` or ``text``."""
        return "text" if self.config.caption_dim else "class"

    @property
    def classes(self) -> int:
        """How many classes it knows; 0 of a model of captions."""
        return 0 if self.config.caption_dim else self.config.class_num

    @property
    def text_width(self) -> int:
        """Width of the text features that it reads; 0 of a model of classes."""
        return self.config.caption_dim

    def null_condition(self, batch: int) -> Tensor:
        """The values that stand for nothing asked for: the class that is none, int64 [B], or no word, [B, T, D]."""
        if self.config.caption_dim:
            return self.z_proj.weight.new_zeros(batch, self.config.caption_tokens, self.config.caption_dim)
        return torch.full((batch,), self.config.class_num, device=self.numbers.device)

    # The network

    def condition(self, values: Tensor, t: Tensor) -> Tensor:
        """Conditions of entities [B, K, E] from values and times [B, K] in [0, 1], in steps of a thousandth."""
        time = self.time_embed((1000 * t.float()).trunc())
        return time if self.config.caption_dim else self.class_emb(values)[:, None] + time

    def _run(
        self,
        h: Tensor,
        condition: Tensor,
        start: int,
        entity: Tensor | None,
        visible: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """States [B, n, E] of the n projected tokens of the sequence, words first, from ``start`` on, of which ``pred``
        makes velocities."""
        span = slice(start, start + h.shape[1])
        rope = self.rope[span]
        h = self.z_proj_ln(h + self.encoder_pos_embed_learned[:, span])
        for i, block in enumerate((*self.encoder_blocks, *self.decoder_blocks)):
            if i == len(self.encoder_blocks):
                h = self.decoder_embed(self.encoder_norm(h)) + self.decoder_pos_embed_learned[:, span]
            kept = None if cache is None else _Kept(cache, i)
            h = block(h, block.modulation(condition, entity), rope, visible, kept)
        return self.decoder_norm(h)

    def states(self, sequence: Tensor, t: Tensor, values: Tensor) -> Tensor:
        """States [B, N, E] of all entities in one pass, of which ``pred`` makes velocities; see ``velocities``."""
        h, entity, words = self._embedded(sequence), self.numbers, self.config.caption_tokens
        if words:  # the entity before the first, without noise
            h = torch.cat([self.cap_proj(values), h], 1)
            t, entity = F.pad(t, (1, 0)), F.pad(entity + 1, (words, 0))
        visible = entity[:, None] >= entity
        return self._run(h, self.condition(values, t), 0, entity, visible)[:, words:]

    def _embedded(self, x: Tensor) -> Tensor:
        return self.z_proj(x.to(self.z_proj.weight.dtype))

    def velocities(self, sequence: Tensor, t: Tensor, values: Tensor) -> Tensor:
        """Velocities of all entities in one pass, each seeing the earlier ones as they are, noisy.

        Args:
            sequence: noisy tokens [B, N, D].
            t: times of the entities, [B, K]; 1 is noise.
            values: classes [B], or text features [B, T, caption_dim].

        Returns:
            [B, N, D].
        """
        return self.pred(self.states(sequence, t, values))

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for ``rows`` sequences."""
        config, weight = self.config, self.z_proj.weight
        blocks, head_dim = config.encoder_depth + config.decoder_depth, config.embed_dim // config.num_heads
        return KVCache(blocks, rows, len(self.rope), config.num_heads, head_dim, weight.dtype, weight.device)

    def read(self, values: Tensor, cache: KVCache) -> None:
        """Puts the captions of a model of captions into an empty cache.

        Args:
            values: text features [B, T, caption_dim].
            cache: of as many sequences.
        """
        h = self.cap_proj(values)
        self._run(h, self.condition(values, h.new_zeros(len(h), 1)), 0, None, None, cache)
        cache.advance(h.shape[1])

    def decode(self, x: Tensor, t: Tensor, values: Tensor, cache: KVCache) -> Tensor:
        """Velocities of the next entity behind the cached ones. Its own keys and values stay behind the rows in use;
        the caller keeps those of a finished entity with ``cache.advance``.

        Args:
            x: the entity's tokens, [B, n, D].
            t: its time, a scalar in [0, 1].
            values: classes [B], or text features [B, T, caption_dim].
            cache: of the caption and the finished entities.

        Returns:
            [B, n, D].
        """
        condition = self.condition(values, t.expand(len(x), 1))
        return self.pred(self._run(self._embedded(x), condition, cache.bound, None, None, cache))

    # Training

    def noisy(
        self, latents: Tensor, values: Tensor, t: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns a training batch: the noisy sequence [B, N, D], times [B, K] and values, as ``velocities`` takes
        them, and the velocities that are to be told, [B, N, D]; arguments as of ``forward``."""
        clean = self.entities.split(self.own_tokens(latents))
        noise = torch.randn_like(clean) if noise is None else noise
        if t is None:
            t = torch.randn(len(clean), len(self.entities.sizes), device=clean.device).sigmoid()
        if self.training and self.config.label_drop_prob > 0:
            kept = torch.rand(len(values), device=values.device) >= self.config.label_drop_prob
            values = torch.where(kept.view(-1, *[1] * (values.ndim - 1)), values, self.null_condition(len(values)))
        share = t[:, self.numbers, None]
        return (1 - share) * clean + share * noise, t, values, noise - clean

    def forward(self, latents: Tensor, values: Tensor, t: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """The loss of noisy context learning: all entities are noisy, each to an extent of its own.

        Args:
            latents: scaled [B, c, H, W].
            values: classes [B], or text features [B, T, caption_dim]; in training some are dropped at random.
            t: times [B, K]; a sigmoid of standard normals if None.
            noise: [B, N, D]; drawn if None.

        Returns:
            A scalar: the mean squared error of velocities.
        """
        sequence, t, values, velocities = self.noisy(latents, values, t, noise)
        return F.mse_loss(self.velocities(sequence, t, values).float(), velocities)


FAMILY = LatentFamily("xar", XAR, "entities", frozenset({"text_encoder"}))
