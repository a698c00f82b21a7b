"""Train a KL autoencoder: squared error and the divergence of its posterior from the normal law.

Latent diffusion (arXiv 2112.10752) adds a perceptual term and an adversary for photographs, whose weights cannot be
shipped and from which scenes of flat colour gain nothing. The divergence weighs more than its published 1e-6: it makes
the decoder forgive the small errors of a generator, and latents that carry nothing become plain noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.tokenizers.kl import KLAutoencoder
from vistok.tokenizers.posterior import Posterior
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import PictureData, open_source
from vistok.train.tasks.kl_from_vq import autoencoder_from_vq
from vistok.train.tasks.pictures import PictureTask, check_size

FITTED = 64  # pictures from which the start of a VQ tokenizer is fitted


@dataclass(frozen=True, kw_only=True)
class KLData(PictureData):
    """Entries of ``data`` of the ``kl`` task, beside those of PictureData.

    Attributes:
        size: side of the pictures in pixels.
        divergence: weight of the divergence, in nats per latent value.
        freeze_encoder: train the decoder alone, so that generators can be trained on the latents meanwhile.
    """

    size: int
    divergence: float
    freeze_encoder: bool = False


@dataclass(frozen=True, kw_only=True)
class KLInit:
    """Entries of ``init``; new weights of the shape ``model`` without any.

    Attributes:
        kl: an autoencoder to go on from.
        vq: a VQ tokenizer whose blocks are taken over; ``model`` then holds ``z_channels`` alone.
    """

    kl: str | None = None
    vq: str | None = None


@dataclass(frozen=True)
class FromVQ:
    """Entries of ``model`` where a VQ tokenizer says the rest.

    Attributes:
        z_channels: width of a latent.
    """

    z_channels: int


class KLObjective(nn.Module):
    """Squared error of a posterior sample's reconstruction and the divergence per latent value, weighted.

    Args:
        autoencoder: what is trained.
        divergence: weight of the divergence, in nats per latent value.
    """

    def __init__(self, autoencoder: KLAutoencoder, divergence: float):
        super().__init__()
        self.autoencoder = autoencoder
        self.divergence = divergence

    def forward(self, images: Tensor):
        reconstruction, posterior = self.autoencoder(images)
        pixel = F.mse_loss(reconstruction.float(), images)
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        return pixel + self.divergence * kl, {"pixel_loss": pixel.detach(), "kl": kl.detach()}


class KLTask(PictureTask):
    """The ``kl`` task: see KLData and KLInit."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data, init = read_options(KLData, recipe.data, "data"), read_options(KLInit, recipe.init, "init")
        self.source = open_source(self.data, self.data.size)
        torch.manual_seed(recipe.seed)
        if init.kl is None and init.vq is not None:
            autoencoder = self._from_vq(init.vq)
        else:
            new = {"scaling_factor": 1.0} if init.kl is None else {}
            autoencoder = start_network(KLAutoencoder, init.kl, recipe.model, new)
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)
        check_size(autoencoder.capabilities, self.data.size)
        if self.data.freeze_encoder:
            for module in (autoencoder.encoder, autoencoder.quant_conv):
                module.requires_grad_(False)
        self.model = KLObjective(self.autoencoder, self.data.divergence)

    def _from_vq(self, name: str) -> KLAutoencoder:
        vq = VQTokenizer.from_pretrained(name)
        check_size(vq.capabilities, self.data.size)
        z_channels = read_options(FromVQ, self.recipe.model, "model").z_channels
        if not 1 <= z_channels <= vq.config.codebook_dim:
            raise VistokError(
                f"'model.z_channels' is {z_channels}, but the codes of '{name}' give 1 to {vq.config.codebook_dim}."
            )
        return autoencoder_from_vq(vq, z_channels, self.first_pictures(FITTED))

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures."""
        return {"images": self.draw_pictures(step, rows).contiguous(memory_format=torch.channels_last)}

    def _posteriors(self) -> Iterator[tuple[Tensor, Posterior]]:
        device = next(self.autoencoder.parameters()).device
        for images in self.held_out_pictures(64):
            images = images.to(device)
            yield images, self.autoencoder.posterior(images)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns PSNR in dB of the means and of samples (clamped to [-1, 1]), nats and spread of a latent."""
        torch.manual_seed(self.recipe.seed)
        psnr, drawn, kl, latents = [], [], [], []
        for images, posterior in self._posteriors():
            for values, z in ((psnr, posterior.mean), (drawn, posterior.sample())):
                decoded = self.autoencoder.decode_latents(z).clamp(-1, 1)
                values.append(-10 * ((decoded - images).square().mean((1, 2, 3)) / 4).log10())
            kl.append(posterior.kl() / posterior.mean[0].numel())
            latents.append(posterior.mean.var() + posterior.std.square().mean())
        return {
            "psnr": torch.cat(psnr).mean().item(),
            "psnr_of_samples": torch.cat(drawn).mean().item(),
            "nats_per_value": torch.cat(kl).mean().item(),
            "latent_std": torch.stack(latents).mean().sqrt().item(),
        }

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the autoencoder as an embedded model whose scaled latents have unit variance."""
        self.autoencoder.config = replace(
            self.autoencoder.config, scaling_factor=float(f"{1 / metrics['latent_std']:.4g}")
        )
        self.autoencoder.save_pretrained(directory, torch.float16)
        self.write_card(directory, self.autoencoder, "image-tokenizer", "kl", metrics, steps, paper="2406.11838")
