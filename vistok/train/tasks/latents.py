"""What tasks share that train generators on the latents of pictures of classes.

Pictures' means and deviations are kept, upright and mirrored, and drawn anew each time, as published trainings do with
cached moments.
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
    """A task whose pictures are latents of a frozen autoencoder, with their classes.

    Attributes:
        kl: the autoencoder.
        moments: of the source's pictures, scaled means and deviations, upright and mirrored, [2, 2, c, h, w] each.
        labels: their classes.
    """

    data: LatentData

    def open(self, kl: str) -> None:
        """Opens the source and the autoencoder of this name.

        Raises:
            VistokError: they do not fit one another.
        """
        self.kl = KLAutoencoder.from_pretrained(kl).requires_grad_(False)
        check_size(self.kl.capabilities, self.data.size)
        self.source = open_source(self.data, self.data.size, finite=True, by_class=True)
        self.moments = Extracted(len(self.source), lambda index: self._encode(self.source.pictures(index)), torch.half)
        self.labels = Extracted(len(self.source), self.source.labels, torch.long)

    def latent_shape(self) -> dict[str, int]:
        """Returns what pictures and autoencoder say about the shape of a generator."""
        return {
            "img_size": self.data.size,
            "vae_stride": self.kl.config.downsample,
            "vae_embed_dim": self.kl.config.z_channels,
            "class_num": max(1, len(self.source.classes)),
        }

    @torch.no_grad()
    def _encode(self, images: Tensor) -> Tensor:
        """Returns scaled means and deviations, upright and mirrored, [B, 2, 2, c, h, w]."""
        device = next(self.model.parameters()).device
        both = torch.stack([images, images.flip(-1)], 1).flatten(0, 1).to(device)
        kl = self.kl.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            posterior: Posterior = kl.posterior(both)
        pair = torch.stack([posterior.mean.float(), posterior.std.float()], 1) * kl.config.scaling_factor
        return pair.unflatten(0, (len(images), 2)).half().cpu()

    def draw_latents(self, draw: Draw) -> tuple[Tensor, Tensor]:
        """Returns latents of pictures [B, c, h, w], drawn anew, and whether each is mirrored, 0 or 1, [B]."""
        side = torch.randint(2, (len(draw.index),))
        mean, std = self.moments[draw.index][torch.arange(len(side)), side].float().unbind(1)
        return mean + std * torch.randn_like(std), side

    def held_out_moments(self, held_out: Source, index: Tensor) -> Tensor:
        """Returns moments of held-out pictures, [B, 2, 2, c, h, w]."""
        return torch.cat([self._encode(held_out.pictures(part)) for part in index.split(64)])
