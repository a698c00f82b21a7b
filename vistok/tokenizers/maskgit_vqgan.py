"""MaskGIT's VQGAN (Chang et al., arXiv 2202.04200): the proxy codes that TiTok and One-D-Piece learn to predict, and
their decoder.

Parameter names are those of the published ``maskgit-vqgan-imagenet-f16-256.bin``; those of MAGE's and ENAT's
``vqgan_jax_strongaug.ckpt``, the same network, are renamed on loading. Where a residual block changes its
width, the published weights expect the 1x1 shortcut on the block's own output, and the input is left out; so it is
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.tokenizers.blocks import GroupNorm
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.parts import in_parts
from vistok.tokenizers.quantizers import VectorQuantizer
from vistok.zoo.pretrained import Pretrained


@dataclass(frozen=True)
class MaskGITVQGANConfig:
    """Shape of the convolutional tokenizer.

    Attributes:
        codebook_size, codebook_dim: of the codebook.
        channels: base width, a multiple of 32 (GroupNorm has 32 groups).
        channel_mult: width of each level in units of ``channels``, highest resolution first.
        res_blocks: residual blocks of each level.
        mid_blocks: residual blocks of the middle; as many as of a level if None.
    """

    codebook_size: int = 1024
    codebook_dim: int = 256
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    mid_blocks: int | None = None

    @property
    def middle(self) -> int:
        """Residual blocks of the middle."""
        return self.res_blocks if self.mid_blocks is None else self.mid_blocks

    @property
    def downsample(self) -> int:
        """Pixels per code along a side."""
        return 2 ** (len(self.channel_mult) - 1)


PRESETS: dict[str, MaskGITVQGANConfig] = {"MaskGIT-VQGAN": MaskGITVQGANConfig()}


class ResBlock(nn.Module):
    """Two normalised 3x3 convolutions without bias; see the module's text for the shortcut."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1 = GroupNorm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = GroupNorm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(outputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


def _level(inputs: int, outputs: int, blocks: int) -> nn.Module:
    level = nn.Module()
    level.block = nn.ModuleList(ResBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
    return level


class Encoder(nn.Module):
    """Pictures [B, 3, H, W] in [0, 1] to latents [B, D, H/f, W/f]."""

    def __init__(self, config: MaskGITVQGANConfig):
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
        before = [config.channels, *widths[:-1]]
        self.down = nn.ModuleList(_level(i, o, config.res_blocks) for i, o in zip(before, widths, strict=True))
        self.mid = nn.ModuleList(ResBlock(widths[-1], widths[-1]) for _ in range(config.middle))
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.codebook_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for i, level in enumerate(self.down):
            if i:
                x = F.avg_pool2d(x, 2)
            for block in level.block:
                x = block(x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    """Latents [B, D, h, w] to pictures [B, 3, f*h, f*w], nominally in [0, 1] (not clamped)."""

    def __init__(self, config: MaskGITVQGANConfig):
        super().__init__()
        widths = [config.channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(config.codebook_dim, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(ResBlock(widths[-1], widths[-1]) for _ in range(config.middle))
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(_level(i, o, config.res_blocks) for i, o in zip(before, widths, strict=True))
        for level, width in zip(self.up[1:], widths[1:], strict=True):
            level.upsample_conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight at which the adaptive adversarial weight compares gradients."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            if hasattr(level, "upsample_conv"):
                x = level.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv_out(F.silu(self.norm_out(x)))


class MaskGITVQGAN(Pretrained, nn.Module):
    """A grid of codes from one Euclidean codebook: tokens int64 [B, H/f, W/f]."""

    config_class = MaskGITVQGANConfig
    presets = PRESETS
    family = "maskgit_vqgan"
    renamed_keys: ClassVar = {
        r"\.mid\.block_1\.": ".mid.0.",
        r"\.mid\.block_2\.": ".mid.1.",
        r"\.upsample\.conv\.": ".upsample_conv.",
    }

    def __init__(self, config: MaskGITVQGANConfig | None = None):
        super().__init__()
        self.config = config = config or MaskGITVQGANConfig()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(config.codebook_size, config.codebook_dim, l2_norm=False, usage_window=0)

    @property
    def capabilities(self) -> Capabilities:
        """A grid of codes for any picture whose sides are multiples of the downsampling factor."""
        return Capabilities(self.config.codebook_size, "grid", multiple=self.config.downsample)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to codes int64 [B, h, w]."""
        self.capabilities.check_images(images)
        return self._encode(images)

    @in_parts
    def _encode(self, images: Tensor) -> Tensor:
        return self.quantize.indices(self.encoder((images + 1) / 2))

    @torch.no_grad()
    def decode(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Codes int64 [B, h, w] to pictures [B, 3, f*h, f*w], nominally in [-1, 1] (not clamped).

        Raises:
            VistokError: the tokens are none of this tokenizer's, or ``length`` is not h * w: a grid decodes whole.
        """
        self.capabilities.check_tokens(tokens)
        if length is not None:
            self.capabilities.check_length(length, tokens[0].numel())
        return self._decode(tokens)

    @in_parts
    def _decode(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.quantize.codes(tokens).movedim(-1, 1)) * 2 - 1
