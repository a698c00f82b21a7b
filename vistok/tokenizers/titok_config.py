"""Shapes of TiTok and One-D-Piece, and the reader of their published ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vistok.errors import VistokError
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGANConfig

SIZES = {"small": (512, 8, 8), "base": (768, 12, 12), "large": (1024, 24, 16)}  # width, layers, heads


@dataclass(frozen=True)
class TiTokConfig:
    """Shape of a TiTok or One-D-Piece tokenizer.

    Attributes:
        encoder, decoder: width, layers and heads of the two transformers.
        num_tokens: latent tokens N.
        codebook_size: K; unused by the ``vae`` mode.
        token_size: width of a code.
        l2_norm: codes and latents are compared on the unit sphere.
        commitment: weight beta of the commitment loss.
        legacy: the first TiTok and all One-D-Piece: the latents are reshaped where newer ones are transposed, and the
            decoder predicts proxy codes where newer ones paint pixels.
        mode: ``vq`` or ``vae`` (continuous tokens).
        pixel_decoder: a legacy network holds the decoder of the proxy codes (after the second training stage).
        variable_length: trained with Tail Token Drop, so that any prefix decodes.
        image_size, patch_size: side of pictures and of patches.
        proxy_size, proxy_dim, proxy_channels, proxy_mult, proxy_res_blocks: shape of the proxy codes and their decoder.
    """

    encoder: tuple[int, int, int] = SIZES["large"]
    decoder: tuple[int, int, int] = SIZES["large"]
    num_tokens: int = 32
    codebook_size: int = 4096
    token_size: int = 12
    l2_norm: bool = True
    commitment: float = 0.25
    legacy: bool = True
    mode: str = "vq"
    pixel_decoder: bool = True
    variable_length: bool = False
    image_size: int = 256
    patch_size: int = 16
    proxy_size: int = 1024
    proxy_dim: int = 256
    proxy_channels: int = 128
    proxy_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    proxy_res_blocks: int = 2

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def proxy(self) -> MaskGITVQGANConfig:
        """Shape of the proxy codes' tokenizer."""
        return MaskGITVQGANConfig(
            self.proxy_size, self.proxy_dim, self.proxy_channels, self.proxy_mult, self.proxy_res_blocks
        )


def _first(size: str, tokens: int) -> TiTokConfig:
    return TiTokConfig(SIZES[size], SIZES[size], tokens)


def _second(encoder: str, decoder: str, tokens: int) -> TiTokConfig:
    return TiTokConfig(
        SIZES[encoder], SIZES[decoder], tokens, 8192, 64, l2_norm=False, legacy=False, pixel_decoder=False
    )


def _vae(encoder: str, decoder: str, tokens: int) -> TiTokConfig:
    return TiTokConfig(
        SIZES[encoder], SIZES[decoder], tokens, 0, 16, False, legacy=False, mode="vae", pixel_decoder=False
    )


def _one_d_piece(size: str) -> TiTokConfig:
    return TiTokConfig(SIZES[size], SIZES[size], 256, variable_length=True)


PRESETS: dict[str, TiTokConfig] = {
    "TiTok-L-32": _first("large", 32),
    "TiTok-B-64": _first("base", 64),
    "TiTok-S-128": _first("small", 128),
    "TiTok-BL-64-VQ8k": _second("base", "large", 64),
    "TiTok-BL-128-VQ8k": _second("base", "large", 128),
    "TiTok-SL-256-VQ8k": _second("small", "large", 256),
    "TiTok-LL-32-VAE": _vae("large", "large", 32),
    "TiTok-BL-64-VAE": _vae("base", "large", 64),
    "TiTok-BL-128-VAE": _vae("base", "large", 128),
    "One-D-Piece-S-256": _one_d_piece("small"),
    "One-D-Piece-B-256": _one_d_piece("base"),
    "One-D-Piece-L-256": _one_d_piece("large"),
}


def from_published(entries: Mapping[str, Any]) -> TiTokConfig:
    """The shape in a published ``config.json`` (``model.vq_model`` and ``dataset.preprocessing.crop_size``).

    Raises:
        VistokError: an entry is absent, or its value is not one that these networks have.
    """
    try:
        model = entries["model"]["vq_model"]
        encoder, decoder = SIZES[model["vit_enc_model_size"]], SIZES[model["vit_dec_model_size"]]
        legacy = model.get("is_legacy", True)
        mode = model.get("quantize_mode", "vq")
        patch = model["vit_enc_patch_size"]
        if mode not in ("vq", "vae") or patch != model["vit_dec_patch_size"]:
            raise ValueError(f"quantize_mode {mode}, patch sizes {patch} and {model['vit_dec_patch_size']}")
        return TiTokConfig(
            encoder,
            decoder,
            num_tokens=model["num_latent_tokens"],
            codebook_size=model["codebook_size"] if mode == "vq" else 0,
            token_size=model["token_size"],
            l2_norm=model.get("use_l2_norm", False),
            commitment=model.get("commitment_cost", 0.25),
            legacy=legacy,
            mode=mode,
            pixel_decoder=legacy and model.get("finetune_decoder", True),
            variable_length=not model.get("strict_length_assertion", True),
            image_size=entries["dataset"]["preprocessing"]["crop_size"],
            patch_size=patch,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise VistokError(f"this config.json is not that of a TiTok or One-D-Piece tokenizer ({error}).") from error
