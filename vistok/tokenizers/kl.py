"""KL-16, the continuous tokenizer of MAR: pixels <-> a grid of real vectors (Li et al., arXiv 2406.11838; the
autoencoder is that of latent diffusion, Rombach et al., arXiv 2112.10752).

Parameter names are those of the published ``kl16.ckpt``. The blocks are LlamaGen's: both descend from the same
autoencoder. Two things differ from latent diffusion: attention stands in the encoder's lowest level but nowhere in the
decoder's levels, and the width, the levels and the latent width are configurable, so that the embedded autoencoder is
the same network, smaller. ``diffusers.AutoencoderKL`` computes the same function under other names.

Generators work on scaled latents: ``scaling_factor`` times the posterior's sample, about unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.tokenizers.blocks import GroupNorm
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.parts import in_parts
from vistok.tokenizers.posterior import Posterior
from vistok.tokenizers.vq import AttnBlock, Downsample, ResBlock, Upsample
from vistok.zoo.pretrained import Pretrained


@dataclass(frozen=True)
class KLConfig:
    """Shape of a KL autoencoder.

    Attributes:
        channels: base width, a multiple of 32 (GroupNorm has 32 groups).
        channel_mult: width of each level in units of ``channels``, highest resolution first.
        res_blocks: residual blocks of an encoder level; the decoder has one more.
        z_channels: width D of a latent.
        encoder_attention, decoder_attention: levels with attention after each block, 0 the highest resolution.
        scaling_factor: what posterior samples are multiplied by, to about unit variance.
    """

    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    z_channels: int = 16
    encoder_attention: tuple[int, ...] = (4,)
    decoder_attention: tuple[int, ...] = ()
    scaling_factor: float = 0.2325

    @property
    def downsample(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.channel_mult) - 1)


PRESETS: dict[str, KLConfig] = {"KL-16": KLConfig()}


def _level(inputs: int, outputs: int, blocks: int, attention: bool) -> nn.Module:
    level = nn.Module()
    level.block = nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
    level.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(blocks if attention else 0))
    return level


def _run(level: nn.Module, x: Tensor) -> Tensor:
    for i, block in enumerate(level.block):
        x = block(x)
        if len(level.attn):
            x = level.attn[i](x)
    return x


def _mid(channels: int) -> nn.Module:
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = (
        ResBlock(channels, channels),
        AttnBlock(channels),
        ResBlock(channels, channels),
    )
    return mid


def _middle(mid: nn.Module, x: Tensor) -> Tensor:
    return mid.block_2(mid.attn_1(mid.block_1(x)))


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] to moments [B, 2 D, H/f, W/f]."""

    def __init__(self, config: KLConfig):
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([config.channels, *widths], widths, strict=False)):
            level = _level(inputs, outputs, config.res_blocks, i in config.encoder_attention)
            if i < len(widths) - 1:
                level.downsample = Downsample(outputs)
            self.down.append(level)
        self.mid = _mid(widths[-1])
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = _run(level, x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(_middle(self.mid, x))))


class Decoder(nn.Module):
    """Latents [B, D, h, w] to pixels [B, 3, f*h, f*w]; ``up.0`` is the highest resolution and runs last."""

    def __init__(self, config: KLConfig):
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = _mid(widths[-1])
        self.up = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            level = _level(inputs, outputs, config.res_blocks + 1, i in config.decoder_attention)
            if i > 0:
                level.upsample = Upsample(outputs)
            self.up.append(level)
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = _middle(self.mid, self.conv_in(z))
        for level in reversed(self.up):
            x = _run(level, x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class KLAutoencoder(Pretrained, nn.Module):
    """A fixed-length grid of continuous tokens.

    Pictures are [B, 3, H, W] in [-1, 1], H and W multiples of ``config.downsample``; tokens are real
    [B, D, H/f, W/f], scaled.
    """

    config_class = KLConfig
    presets = PRESETS
    family = "kl"

    def __init__(self, config: KLConfig | None = None):
        super().__init__()
        self.config = config = config or KLConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def to_diffusers(self) -> Any:
        """Returns the same network as a ``diffusers.AutoencoderKL``; see ``tokenizers.diffusers_layout``."""
        from vistok.tokenizers.diffusers_layout import kl_to_diffusers

        return kl_to_diffusers(self)

    @classmethod
    def from_diffusers(cls, model: Any) -> KLAutoencoder:
        """Returns a ``diffusers.AutoencoderKL`` as this network.

        Raises:
            VistokError: its network is another one.
        """
        from vistok.tokenizers.diffusers_layout import kl_from_diffusers

        return kl_from_diffusers(model)

    @property
    def capabilities(self) -> Capabilities:
        """A grid of vectors for any picture whose sides are multiples of the downsampling factor."""
        return Capabilities(None, "grid", multiple=self.config.downsample)

    def moments(self, images: Tensor) -> Tensor:
        """Means and log variances [B, 2 D, h, w], not clamped.

        Raises:
            VistokError: the side is not a multiple of the downsampling factor.
        """
        self.capabilities.check_images(images)
        return self.quant_conv(self.encoder(images))

    def posterior(self, images: Tensor) -> Posterior:
        """The Gaussian over unscaled latents of pictures."""
        return Posterior.of(self.moments(images))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures to scaled latents [B, D, h, w]: the posterior's mean."""
        self.capabilities.check_images(images)
        return self._encode(images)

    @in_parts
    def _encode(self, images: Tensor) -> Tensor:
        return self.posterior(images).mean * self.config.scaling_factor

    @torch.no_grad()
    def decode(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Scaled latents [B, D, h, w] to pictures [B, 3, f*h, f*w], nominally in [-1, 1] (not clamped).

        Raises:
            VistokError: the tokens are none of this tokenizer's, or ``length`` is not h * w: a grid decodes whole.
        """
        self.capabilities.check_tokens(tokens, self.config.z_channels)
        if length is not None:
            self.capabilities.check_length(length, tokens[0, 0].numel())
        return self._decode(tokens)

    @in_parts
    def _decode(self, tokens: Tensor) -> Tensor:
        return self.decode_latents(tokens / self.config.scaling_factor)

    def decode_latents(self, z: Tensor) -> Tensor:
        """Unscaled latents [B, D, h, w] to pictures."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, images: Tensor) -> tuple[Tensor, Posterior]:
        """Training pass: reconstructions of a posterior sample [B, 3, H, W], and the posterior."""
        posterior = self.posterior(images)
        return self.decode_latents(posterior.sample()), posterior
