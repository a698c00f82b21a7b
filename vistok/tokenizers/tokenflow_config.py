"""Shapes of TokenFlow."""

from __future__ import annotations

from dataclasses import dataclass

from vistok.tokenizers.vq import VQConfig


@dataclass(frozen=True)
class TokenFlowConfig:
    """Shape of a TokenFlow tokenizer.

    Attributes:
        backbone: vision network of the semantic branch: ``clip`` (OpenAI's), ``siglip``, ``scenes`` (the embedded one),
            or ``none``, where features are handed in.
        backbone_width, backbone_layers, backbone_heads, backbone_mlp, backbone_patch: its shape.
        image_size: side of pictures, and of those that the backbone sees.
        codebook_size: codes K, shared by both codebooks.
        semantic_dim, pixel_dim: widths of the two codes.
        commitment: weight of the commitment loss.
        pixel_weight: of the pixel distance in the choice of an index.
        scales: sides of the grids of tokens; the last is that of the pixel branch's map.
        channels, channel_mult, res_blocks, z_channels: pixel encoder, as of a ``VQTokenizer``.
        decoder_channels, decoder_res_blocks: pixel decoder, where it is larger than the encoder.
        semantic_width, semantic_depth, semantic_heads: transformer of the semantic decoder.
        semantic_out: width of the teacher's features that it learns.
    """

    backbone: str = "clip"
    backbone_width: int = 768
    backbone_layers: int = 12
    backbone_heads: int = 12
    backbone_mlp: int = 3072
    backbone_patch: int = 16
    image_size: int = 256
    codebook_size: int = 32768
    semantic_dim: int = 32
    pixel_dim: int = 8
    commitment: float = 0.25
    pixel_weight: float = 1.0
    scales: tuple[int, ...] = (1, 2, 4, 6, 8, 10, 12, 14, 16)
    channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    res_blocks: int = 2
    z_channels: int = 256
    decoder_channels: int = 128
    decoder_res_blocks: int = 2
    semantic_width: int = 768
    semantic_depth: int = 3
    semantic_heads: int = 12
    semantic_out: int = 512

    @property
    def pixel_encoder(self) -> VQConfig:
        """Shape of the convolutional encoder."""
        return VQConfig(
            channels=self.channels,
            channel_mult=self.channel_mult,
            res_blocks=self.res_blocks,
            z_channels=self.z_channels,
        )

    @property
    def pixel_decoder(self) -> VQConfig:
        """Shape of the convolutional decoder."""
        return VQConfig(
            channels=self.decoder_channels,
            channel_mult=self.channel_mult,
            res_blocks=self.decoder_res_blocks,
            z_channels=self.z_channels,
        )

    @property
    def pixel_size(self) -> int:
        """Side of the pictures that the pixel branch sees: its map is as large as the last scale."""
        return self.scales[-1] * self.pixel_encoder.downsample


_CLIP = TokenFlowConfig(decoder_channels=256, decoder_res_blocks=4)
PRESETS: dict[str, TokenFlowConfig] = {
    # Trained at 224 pixels; the published use for generation is at 256 with interpolated positions.
    "TokenFlow-CLIP-B": _CLIP,
    "TokenFlow-SigLIP": TokenFlowConfig(
        backbone="siglip",
        backbone_width=1152,
        backbone_layers=27,
        backbone_heads=16,
        backbone_mlp=4304,
        backbone_patch=14,
        image_size=384,
        scales=(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 17, 22, 27),
        semantic_width=1152,
        semantic_out=1152,
    ),
}
