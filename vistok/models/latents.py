"""What generators over the latents of a KL autoencoder share when they load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vistok.errors import VistokError
from vistok.models.interface import LoadRequest
from vistok.zoo import resolve

if TYPE_CHECKING:
    from vistok.tokenizers.kl import KLAutoencoder


def load_autoencoder(request: LoadRequest, config: Any) -> KLAutoencoder:
    """Returns the autoencoder of a generator's latents.

    Args:
        request: what the user asked for.
        config: of the generator: ``img_size``, ``vae_stride`` and ``vae_embed_dim``.

    Raises:
        VistokError: another size than the generator's, or an autoencoder of other latents.
    """
    from vistok.tokenizers.kl import KLAutoencoder

    source = request.tokenizer_source
    autoencoder = KLAutoencoder.from_pretrained(source, None if resolve(source).is_dir() else "KL-16")
    own = autoencoder.config
    if request.size not in (None, config.img_size):
        side = config.img_size
        raise VistokError(f"'{request.source}' draws {side}x{side} images: leave --size out, or give {side}.")
    if (config.vae_embed_dim, config.vae_stride) != (own.z_channels, own.downsample):
        raise VistokError(
            f"the generator draws latents of {config.vae_embed_dim} channels for {config.vae_stride} pixels but "
            f"the autoencoder has {own.z_channels} for {own.downsample}: name the one that belongs to it with "
            "--tokenizer."
        )
    return autoencoder
