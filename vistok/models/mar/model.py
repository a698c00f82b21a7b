"""MAR: masked autoregressive generation over continuous tokens (Li et al., arXiv 2406.11838).

An encoder reads the tokens that are known, a decoder adds mask tokens, and every hidden position gets a condition
vector; a small diffusion head draws the token from it. Orders are random permutations. Parameter names are those of the
published checkpoints.

Three things differ from the released code, none of them in what is computed: the head's loss runs on hidden tokens
only (the others count for nothing); rows may know different numbers of tokens, by which speculative decoding verifies
several prefixes in one pass; and a step that draws a few tokens asks the last block for those alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.latents import LatentConfig, LatentFamily, LatentGenerator
from vistok.models.mar.head import DiffLoss
from vistok.ops import attention


@dataclass(frozen=True)
class MARConfig(LatentConfig):
    """Shape of a MAR, under the names of the published configuration.

    Attributes:
        encoder_embed_dim, encoder_depth, encoder_num_heads: of the encoder; likewise the decoder's.
        mlp_ratio, ln_eps: of the blocks.
        class_num: classes; no class is a parameter of its own, ``fake_latent``.
        buffer_size: slots before the tokens that hold the class embedding.
        diffloss_d, diffloss_w: depth and width of the head. The published training script defaults to 12 and 1536;
            the checkpoints have their own.
        diffusion_batch_mul: noise levels that each token is trained at in a step.
        label_drop_prob: share of training samples without a class; 0 for a model that has learnt a guided law.
        mask_ratio_min: least share of hidden tokens in training.
        attn_dropout, proj_dropout: in training.
    """

    encoder_embed_dim: int = 1024
    encoder_depth: int = 16
    encoder_num_heads: int = 16
    decoder_embed_dim: int = 1024
    decoder_depth: int = 16
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    ln_eps: float = 1e-6
    class_num: int = 1000
    buffer_size: int = 64
    diffloss_d: int = 8
    diffloss_w: int = 1280
    diffusion_batch_mul: int = 4
    label_drop_prob: float = 0.1
    mask_ratio_min: float = 0.7
    attn_dropout: float = 0.1
    proj_dropout: float = 0.1

    @property
    def distilled(self) -> bool:
        """Whether the guidance of a teacher is in its weights: it was trained without the null condition."""
        return self.label_drop_prob == 0


def _published(width: int, depth: int, heads: int, head_depth: int, head_width: int) -> MARConfig:
    return MARConfig(
        encoder_embed_dim=width,
        encoder_depth=depth,
        encoder_num_heads=heads,
        decoder_embed_dim=width,
        decoder_depth=depth,
        decoder_num_heads=heads,
        diffloss_d=head_depth,
        diffloss_w=head_width,
    )


PRESETS: dict[str, MARConfig] = {
    "MAR-B": _published(768, 12, 12, 6, 1024),
    "MAR-L": _published(1024, 16, 16, 8, 1280),
    "MAR-H": _published(1280, 20, 16, 12, 1536),
}


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int, attn_dropout: float, proj_dropout: float):
        super().__init__()
        self.heads, self.attn_dropout, self.proj_dropout = heads, attn_dropout, proj_dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, visible: Tensor | None, places: Tensor | None = None) -> Tensor:
        if places is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, N, d]
        else:
            width = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x.take_along_dim(places, dim=1), weight[:width], bias[:width])
            q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            k, v = F.linear(x, weight[width:], bias[width:]).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.attn_dropout if self.training else 0.0
        h = attention(q, k, v, mask=visible, dropout=dropout)
        return F.dropout(self.proj(h.transpose(1, 2).flatten(2)), self.proj_dropout, self.training)


class Mlp(nn.Module):
    """Two linear maps around a GELU."""

    def __init__(self, width: int, hidden: int, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        h = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        return F.dropout(self.fc2(h), self.dropout, self.training)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, config: MARConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=config.ln_eps)
        self.attn = Attention(width, heads, config.attn_dropout, config.proj_dropout)
        self.norm2 = nn.LayerNorm(width, eps=config.ln_eps)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), config.proj_dropout)

    def forward(self, x: Tensor, visible: Tensor | None = None, places: Tensor | None = None) -> Tensor:
        """The block's output [B, N, D], or [B, Q, D] at ``places`` alone, int64 [B, Q, 1]."""
        own = x if places is None else x.take_along_dim(places, dim=1)
        x = own + self.attn(self.norm1(x), visible, places)
        return x + self.mlp(self.norm2(x))


class MAR(LatentGenerator):
    """The published class-conditional MAR.

    Masks are bool [B, L], True where a token is hidden; tokens are [B, L, D] in raster order, scaled latents.

    Args:
        config: its shape.

    Raises:
        VistokError: the picture's side is not a whole number of tokens.
    """

    family = "mar"
    config_class = MARConfig
    presets = PRESETS

    def __init__(self, config: MARConfig):
        super().__init__(config)
        wide, deep = config.encoder_embed_dim, config.decoder_embed_dim
        slots = config.buffer_size + config.seq_len
        self.class_emb = nn.Embedding(config.class_num, wide)
        self.fake_latent = nn.Parameter(torch.zeros(1, wide))
        self.z_proj = nn.Linear(config.token_dim, wide)
        self.z_proj_ln = nn.LayerNorm(wide, eps=config.ln_eps)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, wide))
        self.encoder_blocks = nn.ModuleList(
            Block(wide, config.encoder_num_heads, config) for _ in range(config.encoder_depth)
        )
        self.encoder_norm = nn.LayerNorm(wide, eps=config.ln_eps)
        self.decoder_embed = nn.Linear(wide, deep)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, deep))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, slots, deep))
        self.decoder_blocks = nn.ModuleList(
            Block(deep, config.decoder_num_heads, config) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(deep, eps=config.ln_eps)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, config.seq_len, deep))
        self._initialise()
        self.diffloss = DiffLoss(config.token_dim, deep, config.diffloss_w, config.diffloss_d)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("_learned", "mask_token", "fake_latent", "class_emb.weight")):
                nn.init.normal_(parameter, std=0.02)

    def condition(self, labels: Tensor) -> Tensor:
        """Class embeddings [B, E] of classes [B]; in training some rows get the null condition."""
        embedded = self.class_emb(labels)
        if not self.training:
            return embedded
        dropped = torch.rand(len(labels), device=labels.device) < self.config.label_drop_prob
        return torch.where(dropped[:, None], self.fake_latent.to(embedded.dtype), embedded)

    def null_condition(self, batch: int) -> Tensor:
        """The condition of no class, [B, E]."""
        return self.fake_latent.expand(batch, -1)

    def encode(self, tokens: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        """Features of the buffer and the known tokens.

        Args:
            tokens: [B, L, D]; hidden ones are not read.
            mask: True where hidden; rows may hide different numbers.
            condition: [B, E].

        Returns:
            [B, buffer + K, E] with K the most tokens that a row knows, known ones first in raster order.
        """
        buffer = self.config.buffer_size
        known = self._places(~mask)
        h = self.z_proj(tokens.to(self.z_proj.weight.dtype))
        h = torch.cat([condition[:, None].expand(-1, buffer, -1).to(h.dtype), h], dim=1)
        h = self.z_proj_ln(h + self.encoder_pos_embed_learned)
        h = torch.cat([h[:, :buffer], h[:, buffer:].take_along_dim(known.places[..., None], dim=1)], dim=1)
        visible = known.visible(buffer)
        for block in self.encoder_blocks:
            h = block(h, visible)
        return self.encoder_norm(h)

    def decode(self, features: Tensor, mask: Tensor, asked: Tensor | None = None) -> Tensor:
        """Conditions of the head from the encoder's features: [B, L, Ed], or [N, Ed] where some are asked for.

        Args:
            features: see ``encode``.
            mask: True where hidden, [B, L].
            asked: bool [B, L] with N positions, in whose order the conditions come; the last block computes no others.
        """
        buffer = self.config.buffer_size
        known = self._places(~mask)
        h = self.decoder_embed(features)
        y = self.mask_token.to(h.dtype).expand(len(h), self.config.seq_len + 1, -1).clone()
        # Padding of rows that know fewer tokens is written behind the last position, and cut off.
        places = known.places if known.real is None else known.places.where(known.real, self.config.seq_len)
        y = y.scatter(1, places[..., None].expand(-1, -1, h.shape[-1]), h[:, buffer:])[:, :-1]
        y = torch.cat([h[:, :buffer], y], dim=1) + self.decoder_pos_embed_learned
        *blocks, last = self.decoder_blocks
        for block in blocks:
            y = block(y)
        if asked is None:
            return self.decoder_norm(last(y))[:, buffer:] + self.diffusion_pos_embed_learned
        wanted = self._places(asked)
        places = wanted.places[..., None]
        y = self.decoder_norm(last(y, places=buffer + places))
        y = y + self.diffusion_pos_embed_learned.take_along_dim(places, dim=1)
        return y.flatten(0, 1) if wanted.real is None else y[wanted.real]

    def conditions(self, tokens: Tensor, mask: Tensor, condition: Tensor, asked: Tensor | None = None) -> Tensor:
        """Encoder and decoder: the head's conditions [B, L, Ed], or [N, Ed] of the positions that are asked for."""
        return self.decode(self.encode(tokens, mask, condition), mask, asked)

    @staticmethod
    def _places(chosen: Tensor) -> _Places:
        counts = chosen.sum(1)
        most, least = (int(x) for x in torch.stack([counts.max(), counts.min()]).tolist())
        places = (~chosen).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        real = None if most == least else torch.arange(most, device=chosen.device) < counts[:, None]
        return _Places(places, real)

    def forward(
        self, latents: Tensor, labels: Tensor, mask: Tensor, t: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Training loss over hidden tokens.

        Args:
            latents: scaled [B, c, H, W].
            labels: classes [B].
            mask: True where hidden, [B, L].
            t, noise: diffusion steps [M B L] and noise [M B L, D] of the flattened tokens, the whole batch repeated M
                = ``diffusion_batch_mul`` times; drawn if None.

        Returns:
            A scalar.
        """
        tokens = self.own_tokens(latents)
        z = self.conditions(tokens, mask, self.condition(labels))
        return self.head_loss(tokens, z, mask, t, noise)

    def hidden_rows(self, mask: Tensor, *each: Tensor) -> tuple[Tensor, ...]:
        """Of each tensor [B, L, ...] the rows of hidden positions, ``diffusion_batch_mul`` times over."""
        repeats = self.config.diffusion_batch_mul
        return tuple(x[mask].repeat(repeats, 1) for x in each)

    def head_loss(
        self, tokens: Tensor, z: Tensor, mask: Tensor, t: Tensor | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """The training loss, given the head's conditions.

        Args:
            tokens: [B, L, D].
            z: conditions [B, L, Ed].
            mask, t, noise: as of ``forward``.

        Returns:
            A scalar.
        """
        hidden = mask.flatten()
        repeats = self.config.diffusion_batch_mul
        x0, z = self.hidden_rows(mask, tokens, z)
        if t is None:
            t = torch.randint(len(self.diffloss.process), (len(x0),), device=x0.device)
        else:
            t = t[hidden.repeat(repeats)]
        noise = torch.randn_like(x0) if noise is None else noise[hidden.repeat(repeats)]
        return self.diffloss(x0, z, t, noise).mean()


def check_same_tokens(own: MAR, other: MAR, role: str, other_role: str) -> None:
    """Raise VistokError unless two generators have the same tokens and classes.

    Args:
        own, other: the generators.
        role, other_role: what each is to the other, for the sentence, e.g. ``"target"`` and ``"draft"``.
    """
    for name in ("seq_len", "token_dim", "class_num"):
        ours, theirs = getattr(own.config, name), getattr(other.config, name)
        if theirs != ours:
            raise VistokError(
                f"the {other_role} has {name} {theirs} and the {role} {ours}: name a {other_role} of the same tokens."
            )


@dataclass(frozen=True)
class _Places:
    """Where the chosen positions of each row are, of which rows may have different numbers.

    Attributes:
        places: chosen positions in raster order, and then others, int64 [B, K] with K the most of a row.
        real: which of them are chosen, None where all are.
    """

    places: Tensor
    real: Tensor | None

    def visible(self, buffer: int) -> Tensor | None:
        """Attention mask [B, 1, 1, buffer + K]: padding is not seen."""
        return None if self.real is None else F.pad(self.real, (buffer, 0), value=True)[:, None, None]


FAMILY = LatentFamily("mar", MAR, "mar")
