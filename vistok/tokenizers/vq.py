"""LlamaGen's VQ tokenizer: pixels <-> a grid of codes (Sun et al., "Autoregressive Model Beats Diffusion", arXiv
2406.06525).

A convolutional autoencoder with an l2-normalised codebook. Parameter names are those of the published
``vq_ds16_c2i.pt``,
``vq_ds8_c2i.pt`` and ``vq_ds16_t2i.pt``. The published class fixes the base width at 128 and the latent width at 256;
both are configurable here, so that the embedded tokenizer is the same network, smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vistok.tokenizers.blocks import GroupNorm
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.parts import in_parts
from vistok.tokenizers.quantizers import VectorQuantizer
from vistok.zoo.pretrained import Pretrained


@dataclass(frozen=True)
class VQConfig:
    """Shape of a VQ tokenizer.

    Attributes:
        codebook_size: number of codes K.
        codebook_dim: width D of a code.
        l2_norm: codes and latents are compared on the unit sphere.
        channels: base width, a multiple of 32 (GroupNorm has 32 groups).
        channel_mult: width of each resolution level in units of ``channels``, highest resolution first.
        res_blocks: residual blocks per encoder level; the decoder has one more.
        z_channels: width between encoder and quantizer.
        commitment: weight beta of the commitment loss.
        entropy: weight of the codebook entropy loss.
    """

    codebook_size: int = 16384
    codebook_dim: int = 8
    l2_norm: bool = True
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    z_channels: int = 256
    commitment: float = 0.25
    entropy: float = 0.0

    @property
    def downsample(self) -> int:
        """Pixels per code along a side."""
        return 2 ** (len(self.channel_mult) - 1)


PRESETS: dict[str, VQConfig] = {
    "VQ-16": VQConfig(),
    "VQ-8": VQConfig(channel_mult=(1, 2, 2, 4)),
}


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions on a residual path; a 1x1 convolution on the skip where the width changes."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = GroupNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions of a feature map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = GroupNorm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (f(h).flatten(2).transpose(1, 2)[:, None] for f in (self.q, self.k, self.v))  # [B, 1, HW, C]
        h = F.scaled_dot_product_attention(q, k, v)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """Halve the side: pad right and bottom by one, then a 3x3 convolution with stride 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the side: nearest neighbours, then a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """The blocks of one resolution; attention after each residual block at the lowest resolution only."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool):
        super().__init__()
        self.res = nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(outputs) for _ in range(blocks if attention else 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, res in enumerate(self.res):
            x = res(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


def _mid(channels: int) -> nn.ModuleList:
    return nn.ModuleList([ResBlock(channels, channels), AttnBlock(channels), ResBlock(channels, channels)])


class Encoder(nn.Module):
    """Pixels [B, 3, H, W] to latents [B, z_channels, H/f, W/f]."""

    def __init__(self, config: VQConfig):
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.conv_blocks = nn.ModuleList()
        width = config.channels
        for i, out in enumerate(widths):
            last = i == len(widths) - 1
            level = _Level(width, out, config.res_blocks, attention=last)
            if not last:
                level.downsample = Downsample(out)
            self.conv_blocks.append(level)
            width = out
        self.mid = _mid(width)
        self.norm_out = GroupNorm(width)
        self.conv_out = nn.Conv2d(width, config.z_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.conv_blocks:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents [B, z_channels, h, w] to pixels [B, 3, f*h, f*w]; levels run from the lowest resolution up."""

    def __init__(self, config: VQConfig):
        super().__init__()
        widths = [config.channels * m for m in reversed(config.channel_mult)]
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = _mid(widths[0])
        self.conv_blocks = nn.ModuleList()
        width = widths[0]
        for i, out in enumerate(widths):
            level = _Level(width, out, config.res_blocks + 1, attention=i == 0)
            if i < len(widths) - 1:
                level.upsample = Upsample(out)
            self.conv_blocks.append(level)
            width = out
        self.norm_out = GroupNorm(width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the adaptive adversarial weight compares gradients."""
        return self.conv_out.weight

    def features(self, z: torch.Tensor) -> torch.Tensor:
        """Latents to what the output layers read, [B, channels, f*h, f*w]."""
        x = self.conv_in(z)
        for block in self.mid:
            x = block(x)
        for level in self.conv_blocks:
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample(x)
        return x

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.conv_out(F.silu(self.norm_out(self.features(z))))


class VQTokenizer(Pretrained, nn.Module):
    """LlamaGen's image tokenizer: a fixed-length grid of codes from one codebook.

    Pictures are [B, 3, H, W] in [-1, 1], H and W multiples of ``config.downsample``; tokens are int64 [B, H/f, W/f]
    in [0, K).
    """

    config_class = VQConfig
    presets = PRESETS
    family = "vq"
    published_entries: ClassVar = {  # of the reference's VQModelHF
        "codebook_embed_dim": "codebook_dim",
        "codebook_l2_norm": "l2_norm",
        "codebook_show_usage": None,
        "commit_loss_beta": "commitment",
        "entropy_loss_ratio": "entropy",
        "encoder_ch_mult": "channel_mult",
        "decoder_ch_mult": "channel_mult",
        "dropout_p": None,
    }
    dropped_keys = (r"quantize\.codebook_used",)  # counts usage; absent where the reference does not count

    def __init__(self, config: VQConfig | None = None):
        super().__init__()
        self.config = config = config or VQConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(
            config.codebook_size, config.codebook_dim, config.l2_norm, config.commitment, config.entropy
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_dim, config.z_channels, 1)

    def to_diffusers(self) -> Any:
        """Returns the same network as a ``diffusers.VQModel``; see ``tokenizers.diffusers_layout``."""
        from vistok.tokenizers.diffusers_layout import vq_to_diffusers

        return vq_to_diffusers(self)

    @classmethod
    def from_diffusers(cls, model: Any) -> VQTokenizer:
        """Returns a ``diffusers.VQModel`` as this network.

        Raises:
            VistokError: its network is another one.
        """
        from vistok.tokenizers.diffusers_layout import vq_from_diffusers

        return vq_from_diffusers(model)

    @property
    def capabilities(self) -> Capabilities:
        """A grid of codes for any picture whose sides are multiples of the downsampling factor."""
        return Capabilities(self.config.codebook_size, "grid", multiple=self.config.downsample)

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures to un-quantized latents [B, D, h, w].

        Raises:
            VistokError: the side is not a multiple of the downsampling factor.
        """
        self.capabilities.check_images(images)
        return self.quant_conv(self.encoder(images))

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to codes int64 [B, h, w]."""
        self.capabilities.check_images(images)
        return self._encode(images)

    @in_parts
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.quantize.indices(self.latents(images))

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, length: int | torch.Tensor | None = None) -> torch.Tensor:
        """Codes int64 [B, h, w] to pictures [B, 3, f*h, f*w], nominally in [-1, 1] (not clamped).

        Raises:
            VistokError: the tokens are none of this tokenizer's, or ``length`` is not h * w: a grid decodes whole.
        """
        self.capabilities.check_tokens(tokens)
        if length is not None:
            self.capabilities.check_length(length, tokens[0].numel())
        return self._decode(tokens)

    @in_parts
    def _decode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decode_latents(self.quantize.codes(tokens).movedim(-1, 1))

    def decode_latents(self, z: torch.Tensor) -> torch.Tensor:
        """Quantized latents [B, D, h, w] to pictures."""
        return self.decoder(self.post_quant_conv(z))

    def forward(self, images: torch.Tensor):
        """Training pass: reconstructions [B, 3, H, W] and the quantizer's output (codes and losses)."""
        quantized = self.quantize(self.latents(images))
        return self.decode_latents(quantized.latents), quantized
