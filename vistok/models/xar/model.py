"""xAR: next-X prediction by flow matching (Ren et al., arXiv 2502.20388).

A picture's tokens are divided into entities, such as cells of 8x8 tokens. One transformer in two halves sees an entity
and all earlier ones, and tells the velocity from noise to the entity's latents. It is trained with noise in the earlier
entities as well, so that it forgives its own mistakes. Parameter names are those of the published checkpoints; their
tables of positions and their mask follow from the shape and are computed.

Two things differ from the released code, neither in what is computed: grid, entities, patches and channels are free,
and a finished entity enters the cache in a pass of its own, so that no pass needs a mask and all have one shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.latents import LatentConfig, LatentFamily, LatentGenerator
from vistok.models.llamagen import RMSNorm
from vistok.models.mar.head import TimeEmbed
from vistok.models.xar.entities import parse_entities
from vistok.ops import KVCache, apply_rope
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
        label_drop_prob: share of training samples without a class.
        attn_dropout, proj_dropout: in training.
    """

    entity: str = "cell:8"
    embed_dim: int = 768
    num_heads: int = 12
    encoder_depth: int = 8
    decoder_depth: int = 8
    mlp_ratio: float = 4.0
    class_num: int = 1000
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
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
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
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def modulation(self, condition: Tensor, entity: Tensor | None) -> tuple[Tensor, ...]:
        """Two gates, two scales and two shifts, [B, 1 or n, E] each.

        Args:
            condition: [B, K, E].
            entity: which of the K conditions each token has, int64 [n]; None where there is one.
        """
        each = self.ada_lin(condition)
        each = each if entity is None else each[:, entity]
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
    """The published class-conditional xAR.

    Tokens are scaled latents; a sequence [B, N, D] has them entity by entity.

    Args:
        config: its shape.

    Raises:
        VistokError: the picture's side is not a whole number of tokens, or the entity does not divide it.
    """

    family = "xar"
    config_class = XARConfig
    presets = PRESETS
    dropped_keys = (r"mask", r"(en|de)coder_blocks\.\d+\.attn\.rope\.freqs(_cos|_sin)?")

    def __init__(self, config: XARConfig):
        super().__init__(config)
        self.entities = parse_entities(config.entity, config.grid)
        width, count = config.embed_dim, sum(self.entities.sizes)
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
        self.register_buffer("rope", rope_places(self.entities.places, width // config.num_heads), persistent=False)
        self.register_buffer("numbers", self.entities.numbers, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        small = ("_learned", "class_emb.weight", "time_embed.mlp.0.weight", "time_embed.mlp.2.weight")
        for name, parameter in self.named_parameters():
            if name.endswith(small):
                nn.init.normal_(parameter, std=0.02)
            if ".ada_lin." in name or name.startswith("pred."):
                nn.init.zeros_(parameter)

    # What samplers and pipelines ask a generator, see ``vistok.models.interface``.

    def null_condition(self, batch: int) -> Tensor:
        """The class that stands for none, int64 [B]."""
        return torch.full((batch,), self.config.class_num, device=self.numbers.device)

    # The network

    def condition(self, labels: Tensor, t: Tensor) -> Tensor:
        """Conditions of entities [B, K, E] from classes [B] and times [B, K] in [0, 1], in steps of a thousandth."""
        embedded = self.class_emb(labels)[:, None]
        return embedded + self.time_embed((1000 * t.float()).trunc())

    def _run(
        self,
        x: Tensor,
        condition: Tensor,
        start: int,
        entity: Tensor | None,
        visible: Tensor | None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """States [B, n, E] of the n tokens of the sequence from ``start`` on, of which ``pred`` makes velocities."""
        span = slice(start, start + x.shape[1])
        rope = self.rope[span]
        h = self.z_proj(x.to(self.z_proj.weight.dtype))
        h = self.z_proj_ln(h + self.encoder_pos_embed_learned[:, span])
        for i, block in enumerate((*self.encoder_blocks, *self.decoder_blocks)):
            if i == len(self.encoder_blocks):
                h = self.decoder_embed(self.encoder_norm(h)) + self.decoder_pos_embed_learned[:, span]
            kept = None if cache is None else _Kept(cache, i)
            h = block(h, block.modulation(condition, entity), rope, visible, kept)
        return self.decoder_norm(h)

    def states(self, sequence: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """States [B, N, E] of all entities in one pass, of which ``pred`` makes velocities; see ``velocities``."""
        visible = self.numbers[:, None] >= self.numbers
        return self._run(sequence, self.condition(labels, t), 0, self.numbers, visible)

    def velocities(self, sequence: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """Velocities of all entities in one pass, each seeing the earlier ones as they are, noisy.

        Args:
            sequence: noisy tokens [B, N, D].
            t: times of the entities, [B, K]; 1 is noise.
            labels: classes [B]; ``class_num`` is none.

        Returns:
            [B, N, D].
        """
        return self.pred(self.states(sequence, t, labels))

    def new_cache(self, rows: int) -> KVCache:
        """An empty cache for ``rows`` sequences."""
        config, weight = self.config, self.z_proj.weight
        blocks, head_dim = config.encoder_depth + config.decoder_depth, config.embed_dim // config.num_heads
        return KVCache(blocks, rows, len(self.numbers), config.num_heads, head_dim, weight.dtype, weight.device)

    def decode(self, x: Tensor, t: Tensor, labels: Tensor, cache: KVCache) -> Tensor:
        """Velocities of the next entity behind the cached ones. Its own keys and values stay behind the rows in use;
        the caller keeps those of a finished entity with ``cache.advance``.

        Args:
            x: the entity's tokens, [B, n, D].
            t: its time, a scalar in [0, 1].
            labels: classes [B].
            cache: of the finished entities.

        Returns:
            [B, n, D].
        """
        condition = self.condition(labels, t.expand(len(x), 1))
        return self.pred(self._run(x, condition, cache.bound, None, None, cache))

    # Training

    def noisy(
        self, latents: Tensor, labels: Tensor, t: Tensor | None = None, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns a training batch: the noisy sequence [B, N, D], times [B, K] and classes [B], as ``velocities`` takes
        them, and the velocities that are to be told, [B, N, D]; arguments as of ``forward``."""
        clean = self.entities.split(self.own_tokens(latents))
        noise = torch.randn_like(clean) if noise is None else noise
        if t is None:
            t = torch.randn(len(clean), len(self.entities.sizes), device=clean.device).sigmoid()
        if self.training and self.config.label_drop_prob > 0:
            dropped = torch.rand(len(labels), device=labels.device) < self.config.label_drop_prob
            labels = labels.masked_fill(dropped, self.config.class_num)
        share = t[:, self.numbers, None]
        return (1 - share) * clean + share * noise, t, labels, noise - clean

    def forward(self, latents: Tensor, labels: Tensor, t: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """The loss of noisy context learning: all entities are noisy, each to an extent of its own.

        Args:
            latents: scaled [B, c, H, W].
            labels: classes [B]; in training some are dropped at random.
            t: times [B, K]; a sigmoid of standard normals if None.
            noise: [B, N, D]; drawn if None.

        Returns:
            A scalar: the mean squared error of velocities.
        """
        sequence, t, labels, velocities = self.noisy(latents, labels, t, noise)
        return F.mse_loss(self.velocities(sequence, t, labels).float(), velocities)


FAMILY = LatentFamily("xar", XAR, "entities")
