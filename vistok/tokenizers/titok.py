"""TiTok (Yu et al., arXiv 2406.07550) and One-D-Piece (Miwa et al., arXiv 2501.10064): pictures as short sequences of
tokens.

A transformer reads patches and N learned latent tokens and keeps the latter; another reads masks and the quantized
tokens and paints the patches. One-D-Piece is the same network, trained with the tail of the tokens dropped at random
(Tail Token Drop), so that any prefix decodes. Parameter names are those of the published weights.

The first TiTok and all One-D-Piece reinterpret the [N, D] latents as [D, N] by a reshape without a transpose. It is a
slip of the reference that the weights were trained with, so it is kept (``legacy``). The reference drops tokens
whenever the module is in training mode; here the number to keep is an argument.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.ops import attention
from vistok.tokenizers import maskgit_vqgan
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.parts import in_parts
from vistok.tokenizers.posterior import Posterior
from vistok.tokenizers.quantizers import Quantized, VectorQuantizer
from vistok.tokenizers.titok_config import PRESETS, TiTokConfig, from_published
from vistok.zoo.pretrained import Pretrained, read_entries


class Attention(nn.Module):
    """Multi-head self-attention with the parameter names of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = rearrange(qkv, "b l (three h d) -> three b h l d", three=3, h=self.heads)
        x = attention(q, k, v, mask=mask)
        return self.out_proj(rearrange(x, "b h l d -> b l (h d)"))


class MLP(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class _Transformer(nn.Module):
    """What encoder and decoder share: a register token, positions of patches and of latent tokens, blocks."""

    def __init__(self, config: TiTokConfig, shape: tuple[int, int, int]):
        super().__init__()
        width, layers, heads = shape
        scale = width**-0.5
        self.patches = config.grid**2
        self.class_embedding = nn.Parameter(scale * torch.randn(1, width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(self.patches + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(scale * torch.randn(config.num_tokens, width))
        self.ln_pre = nn.LayerNorm(width)
        self.transformer = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_post = nn.LayerNorm(width)

    def _run(self, patches: Tensor, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """Patch tokens [B, P, D] and latent tokens [B, n, D] through all blocks, [B, 1 + P + n, D]."""
        register = self.class_embedding.expand(len(patches), 1, -1)
        patches = torch.cat([register, patches], 1) + self.positional_embedding
        latents = latents + self.latent_token_positional_embedding[: latents.shape[1]]
        x = self.ln_pre(torch.cat([patches, latents], 1))
        for block in self.transformer:
            x = block(x, mask)
        return x


class Encoder(_Transformer):
    """Pictures [B, 3, H, W] in [0, 1] and latent tokens [N, D] to latents [B, C, 1, N]."""

    def __init__(self, config: TiTokConfig):
        super().__init__(config, config.encoder)
        width = config.encoder[0]
        self.legacy = config.legacy
        self.patch_embed = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size)
        outputs = config.token_size * (2 if config.mode == "vae" else 1)
        self.conv_out = nn.Conv2d(width, outputs, 1)

    def forward(self, images: Tensor, latent_tokens: Tensor) -> Tensor:
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = self._run(patches, latent_tokens.expand(len(images), -1, -1))
        z = self.ln_post(x[:, 1 + self.patches :])
        batch, count, width = z.shape
        z = z.reshape(batch, width, count) if self.legacy else z.transpose(1, 2)
        return self.conv_out(z[..., None]).transpose(2, 3)


class Decoder(_Transformer):
    """Quantized tokens [B, n, C] to proxy logits [B, K', g, g], or to pictures in [0, 1] without proxy codes."""

    def __init__(self, config: TiTokConfig):
        super().__init__(config, config.decoder)
        width = config.decoder[0]
        self.grid, self.patch, self.legacy = config.grid, config.patch_size, config.legacy
        self.decoder_embed = nn.Linear(config.token_size, width)
        self.mask_token = nn.Parameter(width**-0.5 * torch.randn(1, 1, width))
        if config.legacy:
            self.ffn = nn.Sequential(
                nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, config.proxy_size, 1)
            )
        else:
            self.ffn = nn.Sequential(nn.Conv2d(width, 3 * config.patch_size**2, 1))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Decode.

        Args:
            tokens: [B, n, C], n at most N.
            lengths: how many of them each row shows, [B]; all if None.
        """
        batch, count, _ = tokens.shape
        mask = None
        if lengths is not None:
            shown = torch.arange(count, device=tokens.device) < lengths.to(tokens.device)[:, None]
            mask = F.pad(shown, (1 + self.patches, 0), value=True)[:, None, None]
        x = self._run(self.mask_token.expand(batch, self.patches, -1), self.decoder_embed(tokens), mask)
        x = self.ln_post(x[:, 1 : 1 + self.patches]).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        x = self.ffn(x)
        if self.legacy:
            return x
        return self.conv_out(rearrange(x, "b (p q c) h w -> b c (h p) (w q)", p=self.patch, q=self.patch))


class TiTok(Pretrained, nn.Module):
    """A sequence of N tokens, int64 [B, N]; continuous [B, N, C] in ``vae`` mode.

    Pictures are [B, 3, H, W] in [-1, 1] with H = W = ``config.image_size``.
    """

    config_class = TiTokConfig
    presets = PRESETS
    family = "titok"

    def __init__(self, config: TiTokConfig | None = None):
        super().__init__()
        self.config = config = config or TiTokConfig()
        width = config.encoder[0]
        self.latent_tokens = nn.Parameter(width**-0.5 * torch.randn(config.num_tokens, width))
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        if config.mode == "vq":
            self.quantize = VectorQuantizer(
                config.codebook_size, config.token_size, config.l2_norm, config.commitment, usage_window=0
            )
        if config.legacy and config.pixel_decoder:
            self.pixel_quantize = nn.Module()
            self.pixel_quantize.embedding = nn.Embedding(config.proxy_size, config.proxy_dim)
            self.pixel_decoder = maskgit_vqgan.Decoder(config.proxy)

    @classmethod
    def read_config(cls, path: Path) -> TiTokConfig:
        """The shape in a ``config.json``: one of ``save_pretrained``, or a published one."""
        entries = read_entries(path)
        return from_published(entries) if "model" in entries else super().read_config(path)

    @property
    def capabilities(self) -> Capabilities:
        """A sequence of one fixed picture size; any prefix decodes if the network was trained for it."""
        count = self.config.num_tokens
        return Capabilities(
            self.config.codebook_size if self.config.mode == "vq" else None,
            "sequence",
            multiple=self.config.patch_size,
            image_size=self.config.image_size,
            lengths=range(1, count + 1) if self.config.variable_length else (count,),
        )

    def latents(self, images: Tensor) -> Tensor:
        """Pictures in [-1, 1] to un-quantized latents [B, C, 1, N] (twice C in ``vae`` mode).

        Raises:
            VistokError: the pictures have another size.
        """
        self.capabilities.check_images(images)
        return self.encoder((images + 1) / 2, self.latent_tokens)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures to tokens int64 [B, N]; in ``vae`` mode to the posterior's mean, [B, N, C]."""
        self.capabilities.check_images(images)
        return self._encode(images)

    @in_parts
    def _encode(self, images: Tensor) -> Tensor:
        z = self.latents(images)
        if self.config.mode == "vae":
            return rearrange(Posterior.of(z).mean, "b c 1 n -> b n c")
        return self.quantize.indices(z)[:, 0]

    @torch.no_grad()
    def decode(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Tokens to pictures [B, 3, H, W], nominally in [-1, 1] (not clamped).

        Args:
            tokens: int64 [B, n], or [B, n, C] in ``vae`` mode.
            length: how many first tokens to decode; an int64 tensor [B] gives every row its own number, in one pass.

        Raises:
            VistokError: a length that this tokenizer does not decode.
        """
        self.capabilities.check_tokens(tokens, self.config.token_size)
        lengths = None
        length = tokens.shape[1] if length is None else length
        self.capabilities.check_length(length, tokens.shape[1])
        if isinstance(length, Tensor):
            lengths, length = length, int(length.max())
        return self._decode(tokens[:, :length], lengths)

    @in_parts
    def _decode(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        return self.paint(tokens if self.config.mode == "vae" else self.quantize.codes(tokens), lengths)

    def proxy_logits(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, n, C] to logits over the proxy codes, [B, K', g, g], which the first training stage learns.

        Raises:
            VistokError: this network has no proxy codes.
        """
        if not self.config.legacy:
            raise VistokError("this TiTok paints pixels and predicts no proxy codes.")
        return self.decoder(codes, lengths)

    def paint(self, codes: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Codes [B, n, C], of which each row shows the first ``lengths``, to pictures.

        Raises:
            VistokError: the weights are of the first stage, which has no pixel decoder.
        """
        x = self.decoder(codes, lengths)
        if self.config.legacy:
            if not self.config.pixel_decoder:
                raise VistokError(
                    "these weights are of the first training stage and predict proxy codes: take proxy_logits and "
                    "decode its argmax with a MaskGITVQGAN."
                )
            mixture = x.softmax(1).movedim(1, -1) @ self.pixel_quantize.embedding.weight
            x = self.pixel_decoder(mixture.movedim(-1, 1))
        return x * 2 - 1

    def forward(self, images: Tensor, keep: int | Tensor | None = None, noise: Tensor | None = None):
        """Training pass.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            keep: how many first tokens the decoder sees (Tail Token Drop: draw it with ``sample_lengths``); all if
                None.
            noise: standard normal [B, C, 1, N] for ``vae`` mode.

        Returns:
            Pictures, or proxy logits [B, K', g, g] where there is no pixel decoder, and the ``Quantized`` of all tokens
            (the ``Posterior`` in ``vae`` mode).
        """
        return self.from_latents(self.latents(images), keep, noise)

    def from_latents(self, z: Tensor, keep: int | Tensor | None = None, noise: Tensor | None = None):
        """The part of the training pass that follows ``latents``; see ``forward``."""
        bottleneck: Quantized | Posterior
        if self.config.mode == "vae":
            bottleneck = Posterior.of(z)
            latents = bottleneck.mean if noise is None else bottleneck.sample(noise)
        else:
            bottleneck = self.quantize(z)
            latents = bottleneck.latents
        codes = rearrange(latents, "b c 1 n -> b n c")
        lengths = keep if isinstance(keep, Tensor) else None
        if isinstance(keep, int):
            codes = codes[:, :keep]
        proxy = self.config.legacy and not self.config.pixel_decoder
        return (self.proxy_logits if proxy else self.paint)(codes, lengths), bottleneck
