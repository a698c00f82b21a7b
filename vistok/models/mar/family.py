"""How MARs load: the generator, by its averaged weights, with its autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vistok.errors import VistokError
from vistok.models.interface import LoadRequest
from vistok.models.mar.model import MAR
from vistok.zoo import resolve

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer


class MARFamily:
    """See ``vistok.models.interface.GeneratorFamily``."""

    name = "mar"
    interface = "mar"
    plain = "mar"
    options = frozenset({"size", "preset"})

    def load(self, request: LoadRequest) -> tuple[MAR, Tokenizer]:
        """Returns the generator and its autoencoder."""
        from vistok.tokenizers.kl import KLAutoencoder

        source = request.tokenizer_source
        autoencoder = KLAutoencoder.from_pretrained(source, None if resolve(source).is_dir() else "KL-16")
        model = MAR.from_pretrained(request.source, request.preset, prefer_ema=True)
        config, own = model.config, autoencoder.config
        if request.size not in (None, config.img_size):
            side = config.img_size
            raise VistokError(f"'{request.source}' draws {side}x{side} images: leave --size out, or give {side}.")
        if (config.vae_embed_dim, config.vae_stride) != (own.z_channels, own.downsample):
            raise VistokError(
                f"the generator draws latents of {config.vae_embed_dim} channels for {config.vae_stride} pixels but "
                f"the autoencoder has {own.z_channels} for {own.downsample}: name the one that belongs to it with "
                "--tokenizer."
            )
        return model, autoencoder


FAMILY = MARFamily()
