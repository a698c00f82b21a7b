"""What tasks share that train generators on the latents of pictures of classes, or of pictures with captions.

Pictures' means and deviations are kept, upright and mirrored, and drawn anew each time, as published trainings do with
cached moments. Pictures with captions are not mirrored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.tokenizers.kl import KLAutoencoder
from vistok.tokenizers.posterior import Posterior
from vistok.train.sources import Draw, Extracted, PictureData, Source, open_source
from vistok.train.tasks.pictures import PictureTask, check_size


@dataclass(frozen=True, kw_only=True)
class LatentData(PictureData):
    """Entries of ``data``, beside those of PictureData.

    Attributes:
        size: side of the pictures in pixels.
        tokenizer: name under which the card lists the autoencoder; ``init.kl`` if absent.
    """

    size: int
    tokenizer: str | None = None


class LatentTask(PictureTask):
    """A task whose pictures are latents of a frozen autoencoder, with their classes or captions.

    Attributes:
        kl: the autoencoder.
        sides: 2 where pictures are upright or mirrored, 1 where they are upright.
        moments: of the source's pictures, scaled means and deviations of each side, [sides, 2, c, h, w] each.
        labels: their classes.
    """

    data: LatentData

    def open(self, kl: str, by_class: bool = True) -> None:
        """Opens the source, of classes or of captions, and the autoencoder of this name.

        Raises:
            VistokError: they do not fit one another.
        """
        self.kl = KLAutoencoder.from_pretrained(kl).requires_grad_(False)
        check_size(self.kl.capabilities, self.data.size)
        self.sides = 2 if by_class else 1
        self.source = open_source(self.data, self.data.size, finite=True, by_class=by_class)
        self.moments = Extracted(len(self.source), lambda index: self._encode(self.source.pictures(index)), torch.half)
        self.labels = Extracted(len(self.source), self.source.labels, torch.long)

    def latent_shape(self) -> dict[str, int]:
        """Returns what pictures and autoencoder say about the shape of a generator of classes."""
        return self.token_shape() | {"class_num": max(1, len(self.source.classes))}

    def token_shape(self) -> dict[str, int]:
        """Returns what they say about its tokens."""
        return {
            "img_size": self.data.size,
            "vae_stride": self.kl.config.downsample,
            "vae_embed_dim": self.kl.config.z_channels,
        }

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Returns scaled means and deviations of each side, [B, sides, 2, c, h, w]."""
        device = next(self.model.parameters()).device
        sides = [images, images.flip(-1)][: self.sides]
        both = torch.stack(sides, 1).flatten(0, 1).to(device)
        kl = self.kl.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            posterior: Posterior = kl.posterior(both)
        pair = torch.stack([posterior.mean.float(), posterior.std.float()], 1) * kl.config.scaling_factor
        return pair.unflatten(0, (len(images), self.sides)).half().cpu()

    def draw_latents(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Returns latents of pictures [B, c, h, w], drawn anew, and whether each is mirrored, 0 or 1, [B]."""
        side = torch.randint(self.sides, (len(draw.index),))
        mean, std = self.moments[draw.index][torch.arange(len(side)), side].float().unbind(1)
        return mean + std * torch.randn_like(std), side

    def held_out_moments(self, held_out: Source, index: Tensor) -> Tensor:
        """Returns moments of held-out pictures, [B, sides, 2, c, h, w]."""
        return torch.cat([self._encode(held_out.pictures(part)) for part in index.split(64)])
