"""A VQ tokenizer whose codes are decoded into larger pictures; a network of our own.

The codes are those of a trained ``VQTokenizer``, so every generator of its tokens draws larger pictures with it. The
frozen base encodes, and decodes up to its last features. Residual blocks on these, and a convolution that gives
``scale`` x ``scale`` pixels where the base gives one (arXiv 1609.05158) are all that is trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from vistok.errors import VistokError
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.parts import in_parts
from vistok.tokenizers.vq import ResBlock, VQTokenizer
from vistok.zoo.pretrained import Pretrained
from vistok.zoo.registry import is_embedded, local_path


@dataclass(frozen=True)
class UpscaledVQConfig:
    """Shape of an upscaled VQ tokenizer.

    Attributes:
        base: the tokenizer of the codes: an embedded one, or a folder.
        scale: pixels along a side where the base has one.
        res_blocks: residual blocks behind the base's last features.
    """

    base: str = "vq-mini"
    scale: int = 2
    res_blocks: int = 2


class UpscaledVQ(Pretrained, nn.Module):
    """Pictures ``scale`` times as large as those of a VQ tokenizer, from the same codes.

    Pictures are [B, 3, H, W] in [-1, 1], H and W multiples of ``scale`` times the base's downsampling; tokens are int64
    [B, H/f, W/f] in [0, K). The base is no part of the weights: it belongs to a card of its own.
    """

    config_class = UpscaledVQConfig
    family = "vq_upscaled"
    base: VQTokenizer
    published_entries: ClassVar = {}

    def __init__(self, config: UpscaledVQConfig | None = None):
        super().__init__()
        self.config = config = config or UpscaledVQConfig()
        if not is_embedded(config.base) and local_path(config.base) is None:
            raise VistokError(
                f"the tokenizer '{config.base}', whose codes this one decodes, is neither embedded nor a folder here: "
                "save it there, or mend 'base' in config.json."
            )
        base = VQTokenizer.from_pretrained(config.base).requires_grad_(False)
        object.__setattr__(self, "base", base)  # not registered: its weights are not this network's
        last, width = base.decoder.conv_out, base.decoder.conv_out.in_channels
        self.blocks = nn.ModuleList(ResBlock(width, width) for _ in range(config.res_blocks))
        self.norm_out = copy.deepcopy(base.decoder.norm_out).requires_grad_(True)
        self.conv_out = nn.Conv2d(width, 3 * config.scale**2, 3, padding=1)
        with torch.no_grad():  # a new one repeats the base's pixels
            for block in self.blocks:
                block.conv2.weight.zero_()
                block.conv2.bias.zero_()
            self.conv_out.weight.copy_(last.weight.repeat_interleave(config.scale**2, 0))
            self.conv_out.bias.copy_(last.bias.repeat_interleave(config.scale**2))

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> UpscaledVQ:
        """Moves and casts the base too."""
        self.base._apply(fn, recurse)
        return super()._apply(fn, recurse)

    @property
    def quantize(self) -> nn.Module:
        """The base's quantizer, with the codebook."""
        return self.base.quantize

    @property
    def capabilities(self) -> Capabilities:
        """A grid of codes for any picture whose sides are multiples of the downsampling factor."""
        return Capabilities(
            self.base.config.codebook_size, "grid", multiple=self.base.config.downsample * self.config.scale
        )

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to codes int64 [B, h, w]: those of the picture reduced by means of pixels.

        Raises:
            VistokError: the side is not a multiple of the downsampling factor.
        """
        self.capabilities.check_images(images)
        return self._encode(images)

    @in_parts
    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.base.encode(F.avg_pool2d(images, self.config.scale))

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, length: int | torch.Tensor | None = None) -> torch.Tensor:
        """Codes int64 [B, h, w] to pictures [B, 3, f*h, f*w], nominally in [-1, 1] (not clamped).

        Raises:
            VistokError: the tokens are none of the base's, or ``length`` is not h * w: a grid decodes whole.
        """
        self.capabilities.check_tokens(tokens)
        if length is not None:
            self.capabilities.check_length(length, tokens[0].numel())
        return self._decode(tokens)

    @in_parts
    def _decode(self, tokens: torch.Tensor) -> torch.Tensor:
        return self(tokens)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Codes int64 [B, h, w] to pictures [B, 3, f*h, f*w], for training."""
        with torch.no_grad():
            z = self.base.post_quant_conv(self.base.quantize.codes(tokens).movedim(-1, 1))
            x = self.base.decoder.features(z)
        for block in self.blocks:
            x = block(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.config.scale)
