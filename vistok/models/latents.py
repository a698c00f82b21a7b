"""What generators over the latents of a KL autoencoder share: MAR and xAR.

Their tokens are square patches of scaled latents, channels outermost (arXiv 2406.11838), and they load with the
autoencoder that encodes and decodes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.models.interface import LoadRequest, TokenSpec
from vistok.models.patches import patchify, unpatchify
from vistok.zoo import resolve
from vistok.zoo.pretrained import Pretrained

if TYPE_CHECKING:
    from vistok.tokenizers.interface import Tokenizer
    from vistok.tokenizers.kl import KLAutoencoder


@dataclass(frozen=True)
class LatentConfig:
    """Shape of the tokens, under the names of the published configurations.

    Attributes:
        img_size, vae_stride, patch_size: side of a picture, pixels of a latent, latents of a token along a side.
        vae_embed_dim: channels of a latent.
    """

    img_size: int = 256
    vae_stride: int = 16
    patch_size: int = 1
    vae_embed_dim: int = 16

    @property
    def grid(self) -> int:
        """Tokens along a side."""
        return self.img_size // self.vae_stride // self.patch_size

    @property
    def seq_len(self) -> int:
        """Tokens of a picture, L."""
        return self.grid**2

    @property
    def token_dim(self) -> int:
        """Width D of a token."""
        return self.vae_embed_dim * self.patch_size**2


class LatentGenerator(Pretrained, nn.Module):
    """A generator of such tokens, as samplers and pipelines see it: of classes, if it does not say otherwise, of which
    its config has ``class_num``.

    Args:
        config: its shape.

    Raises:
        VistokError: the picture's side is not a whole number of tokens.
    """

    conditional_on = "class"
    text_width = 0

    def __init__(self, config: LatentConfig):
        super().__init__()
        side = config.vae_stride * config.patch_size
        if config.img_size % side:
            raise VistokError(
                f"a picture of {config.img_size} pixels is no whole number of tokens of {side}: choose a multiple."
            )
        self.config = config

    @property
    def tokens(self) -> TokenSpec:
        """The vectors that it draws."""
        return TokenSpec("vectors", self.config.token_dim, self.config.seq_len, patch=self.config.patch_size)

    @property
    def classes(self) -> int:
        """How many classes it knows."""
        return self.config.class_num

    def image_tokens(self, drawn: Tensor) -> Tensor:
        """Returns tokens [B, L, D] in raster order as the autoencoder decodes them: scaled latents [B, c, H, W]."""
        return unpatchify(drawn, self.config.patch_size, self.config.grid)

    def own_tokens(self, tokens: Tensor) -> Tensor:
        """Returns scaled latents [B, c, H, W] of the autoencoder as tokens [B, L, D] in raster order."""
        return patchify(tokens, self.config.patch_size)


class LatentFamily:
    """How such generators load; see ``vistok.models.interface.GeneratorFamily``.

    Args:
        name: of the family.
        kind: its network.
        interface: how its tokens are drawn.
        options: what it honours beside ``size`` and ``preset``.
    """

    def __init__(self, name: str, kind: type[LatentGenerator], interface: str, options: frozenset[str] = frozenset()):
        self.name = self.plain = name
        self.kind, self.interface = kind, interface
        self.options = options | {"size", "preset"}

    def load(self, request: LoadRequest) -> tuple[LatentGenerator, Tokenizer]:
        """Returns the generator, by its averaged weights, and its autoencoder."""
        model = self.kind.from_pretrained(request.source, request.preset, prefer_ema=True)
        return model, load_autoencoder(request, model.config)


def load_autoencoder(request: LoadRequest, config: LatentConfig) -> KLAutoencoder:
    """Returns the autoencoder of a generator's latents.

    Args:
        request: what the user asked for.
        config: of the generator.

    Raises:
        VistokError: another size than the generator's, or an autoencoder of other latents.
    """
    from vistok.tokenizers.kl import KLAutoencoder

    source = request.tokenizer_source
    autoencoder = KLAutoencoder.from_pretrained(source, None if resolve(source).is_dir() else "KL-16")
    own = autoencoder.config
    if request.size not in (None, config.img_size):
        raise request.wrong_size(config.img_size)
    if (config.vae_embed_dim, config.vae_stride) != (own.z_channels, own.downsample):
        raise VistokError(
            f"the generator draws latents of {config.vae_embed_dim} channels for {config.vae_stride} pixels but "
            f"the autoencoder has {own.z_channels} for {own.downsample}: name the one that belongs to it with "
            "--tokenizer."
        )
    return autoencoder
