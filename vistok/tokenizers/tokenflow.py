"""TokenFlow (Qu et al., arXiv 2412.03069): one index per position that selects a semantic and a pixel code.

A vision network and a convolutional encoder each give a map; a multi-scale residual quantizer chooses indices that
are near in both at once; a small transformer decodes semantic features from the first half of the codes, a
convolutional decoder pixels from the second. Parameter names are those of the published weights, except that the
vision network is the installed transformers' and its weights are renamed on loading. Buffers that only count usage or
hold constants are not kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.blocks import Block
from vistok.tokenizers.interface import Capabilities
from vistok.tokenizers.parts import in_parts
from vistok.tokenizers.quantizers import MultiScaleQuantizer, Quantized, SharedQuantizer
from vistok.tokenizers.tokenflow_backbone import backbone_features, build_backbone, convert_backbone
from vistok.tokenizers.tokenflow_config import PRESETS, TokenFlowConfig
from vistok.tokenizers.vq import Decoder, Encoder
from vistok.zoo.checkpoint import load_strict, read_state_dict, without_common_prefix
from vistok.zoo.pretrained import Pretrained
from vistok.zoo.registry import resolve


class SemanticDecoder(nn.Module):
    """Semantic code maps [B, C, n, n] to features [B, n * n, D]."""

    def __init__(self, config: TokenFlowConfig):
        super().__init__()
        width = config.semantic_width
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(config.semantic_dim, width, 1)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + config.scales[-1] ** 2, width))
        self.blocks = nn.ModuleList(
            Block(width, config.semantic_heads, key_bias=False) for _ in range(config.semantic_depth)
        )
        self.fc_norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, codes: Tensor) -> Tensor:
        x = self.patch_embed.proj(codes).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.fc_norm(x[:, 1:])


def _task_layer(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, inputs), nn.Tanh(), nn.Linear(inputs, outputs))


class TokenFlowTraining(NamedTuple):
    """What a training pass gives.

    Attributes:
        images: reconstructions [B, 3, H, W].
        semantics: features [B, n * n, D] to be compared with the teacher's by cosine.
        quantized: codes and losses.
    """

    images: Tensor
    semantics: Tensor
    quantized: Quantized


class TokenFlow(Pretrained, nn.Module):
    """Tokens int64 [B, L], scale by scale; any whole number of first scales decodes.

    Pictures are [B, 3, H, W] in [-1, 1] with H = W = ``config.image_size``.
    """

    config_class = TokenFlowConfig
    presets = PRESETS
    family = "tokenflow"
    dropped_keys = (r"quantize\.codebook_used", r"scaling_layer\.(shift|scale)")

    def __init__(self, config: TokenFlowConfig | None = None):
        super().__init__()
        self.config = config = config or TokenFlowConfig()
        if config.backbone != "none":
            self.encoder_vqkd = build_backbone(config)
        self.encode_task_layer = _task_layer(config.backbone_width, config.semantic_dim)
        self.encoder = Encoder(config.pixel_encoder)
        self.quant_conv = nn.Conv2d(config.z_channels, config.pixel_dim, 1)
        self.quantize = SharedQuantizer(
            config.codebook_size, config.semantic_dim, config.pixel_dim, config.pixel_weight, config.commitment
        )
        self.decoder_vqkd = SemanticDecoder(config)
        self.decode_task_layer = _task_layer(config.semantic_width, config.semantic_out)
        self.post_quant_conv = nn.Conv2d(config.pixel_dim, config.z_channels, 1)
        self.decoder = Decoder(config.pixel_decoder)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, preset: str | None = None, prefer_ema: bool = True, **overrides: Any
    ) -> TokenFlow:
        """Load strictly, see ``Pretrained.from_pretrained``; published files keep their averaged weights as ``ema``."""
        path = resolve(name)
        if path.is_dir():
            return super().from_pretrained(name, preset, prefer_ema, **overrides)
        preset, overrides = cls.preset_of_file(path, preset, overrides)
        model = cls.from_preset(preset, **overrides)
        state = without_common_prefix(read_state_dict(path, prefer_ema=prefer_ema), model.state_dict().keys())
        state = convert_backbone(state, model.config)
        load_strict(model, state, preset, cls.dropped_keys)
        return model.eval()

    @property
    def multiscale(self) -> MultiScaleQuantizer:
        """The multi-scale quantizer over the shared codebooks, which hold all of its weights."""
        return MultiScaleQuantizer(self.quantize, self.config.scales)

    @property
    def capabilities(self) -> Capabilities:
        """Grids of growing side of one fixed picture size; whole first scales decode."""
        return Capabilities(
            self.config.codebook_size,
            "scales",
            multiple=1,
            image_size=self.config.image_size,
            lengths=self.multiscale.lengths,
            codebooks=("semantic", "pixel"),
        )

    def backbone_features(self, images: Tensor) -> Tensor:
        """Features [B, n * n, W] of the vision network.

        Raises:
            VistokError: this tokenizer was built without one.
        """
        if self.config.backbone == "none":
            raise VistokError("this TokenFlow has no vision network: hand its features in.")
        return backbone_features(self.encoder_vqkd, self.config.backbone, images, self.config.scales[-1])

    def latents(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Un-quantized maps [B, semantic + pixel, n, n].

        Args:
            images: [B, 3, H, W] in [-1, 1].
            features: of the vision network, [B, n * n, W]; computed from the pictures if None.

        Raises:
            VistokError: the pictures have another size.
        """
        self.capabilities.check_images(images)
        if features is None:
            features = self.backbone_features(images)
        side = self.config.scales[-1]
        semantic = self.encode_task_layer(features).transpose(1, 2).unflatten(2, (side, side))
        pixel = self.quant_conv(self.encoder(_resized(images, self.config.pixel_size)))
        return torch.cat([semantic, pixel], 1)

    @torch.no_grad()
    def encode(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Pictures, and optionally their features (see ``latents``), to tokens int64 [B, L]."""
        self.capabilities.check_images(images)
        return self._encode(images, features)

    @in_parts
    def _encode(self, images: Tensor, features: Tensor | None) -> Tensor:
        return self.multiscale.indices(self.latents(images, features))

    def code_maps(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Both codes at every position from the first ``length`` tokens (of each row), [B, semantic + pixel, n, n].

        Raises:
            VistokError: ``length`` ends within a scale.
        """
        self.capabilities.check_tokens(tokens)
        length = tokens.shape[1] if length is None else length
        self.capabilities.check_length(length, tokens.shape[1])
        if not isinstance(length, Tensor):
            return self.multiscale.partial_maps(tokens[:, :length])[-1]
        ends = torch.tensor(self.multiscale.lengths, device=tokens.device)
        maps = self.multiscale.partial_maps(tokens[:, : int(length.max())])
        scale = torch.searchsorted(ends, length.to(tokens.device))
        return torch.stack(maps)[scale, torch.arange(len(tokens), device=tokens.device)]

    @torch.no_grad()
    def decode(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Tokens to pictures [B, 3, H, W], nominally in [-1, 1] (not clamped).

        Args:
            tokens: int64 [B, L].
            length: how many first tokens to decode; an int64 tensor [B] gives every row its own number.

        Raises:
            VistokError: ``length`` ends within a scale.
        """
        return self._decode(self.code_maps(tokens, length))

    @in_parts
    def _decode(self, maps: Tensor) -> Tensor:
        return self.paint(maps)

    @torch.no_grad()
    def semantics(self, tokens: Tensor, length: int | Tensor | None = None) -> Tensor:
        """Tokens to semantic features [B, n * n, D], from the same indices as pictures; see ``decode``."""
        return self.describe(self.code_maps(tokens, length))

    def paint(self, maps: Tensor) -> Tensor:
        """Code maps [B, semantic + pixel, n, n] to pictures."""
        pixel = maps[:, self.config.semantic_dim :]
        return _resized(self.decoder(self.post_quant_conv(pixel)), self.config.image_size)

    def describe(self, maps: Tensor) -> Tensor:
        """Code maps to semantic features."""
        return self.decode_task_layer(self.decoder_vqkd(maps[:, : self.config.semantic_dim]))

    def forward(
        self, images: Tensor, features: Tensor | None = None, scale_drop: torch.Generator | None = None
    ) -> TokenFlowTraining:
        """Training pass.

        Args:
            images: [B, 3, H, W] in [-1, 1].
            features: see ``latents``.
            scale_drop: where given, one scale is left out now and then, as in the published training.
        """
        z, multiscale = self.latents(images, features), self.multiscale
        quantized = multiscale(z) if scale_drop is None else multiscale.quantize_with_scale_drop(z, scale_drop)
        return TokenFlowTraining(self.paint(quantized.latents), self.describe(quantized.latents), quantized)


def _resized(images: Tensor, side: int) -> Tensor:
    return images if images.shape[-1] == side else F.interpolate(images, (side, side), mode="bicubic")
