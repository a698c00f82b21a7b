"""Train a KL autoencoder: squared error and the divergence of its posterior from the normal law.

Latent diffusion (arXiv 2112.10752) adds a perceptual term and an adversary for photographs, whose weights cannot be
shipped and from which scenes of flat colour gain nothing. The divergence weighs more than its published 1e-6: it makes
the decoder forgive the small errors of a generator, and latents that carry nothing become plain noise.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.tokenizers.kl import KLAutoencoder, KLConfig
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.kl_from_vq import autoencoder_from_vq

FITTED = 64  # scenes from which the start of a VQ tokenizer is fitted


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


class KLTask:
    """The ``kl`` task: scenes at ``data.size`` pixels.

    It starts from new weights, from those that ``init.kl`` names, or from the VQ tokenizer ``init.vq``. With
    ``data.freeze_encoder`` the decoder alone is trained, so that generators can be trained on the latents meanwhile.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        if "kl" in recipe.init:
            autoencoder = KLAutoencoder.from_pretrained(recipe.init["kl"])
        elif "vq" in recipe.init:
            images = render(sample_scenes(FITTED, recipe.data["seed"]), recipe.data["size"])
            vq = VQTokenizer.from_pretrained(recipe.init["vq"])
            autoencoder = autoencoder_from_vq(vq, recipe.model["z_channels"], images)
        else:
            shape = {key: tuple(value) if isinstance(value, list) else value for key, value in recipe.model.items()}
            autoencoder = KLAutoencoder(KLConfig(**shape, scaling_factor=1.0))
        self.autoencoder = autoencoder.to(memory_format=torch.channels_last)
        if recipe.data.get("freeze_encoder", False):
            for module in (autoencoder.encoder, autoencoder.quant_conv):
                module.requires_grad_(False)
        self.model = KLObjective(self.autoencoder, recipe.data["divergence"])
        self.size = recipe.data["size"]

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        images = render(sample_scenes(rows.stop - rows.start, self.recipe.data["seed"], start), self.size)
        return {"images": images.contiguous(memory_format=torch.channels_last)}

    def after_step(self, step: int) -> None:
        """Nothing happens between steps."""

    def _posteriors(self):
        device = next(self.autoencoder.parameters()).device
        for start in range(0, self.recipe.data.get("eval_scenes", 512), 64):
            images = render(sample_scenes(64, HELD_OUT, start), self.size).to(device)
            yield images, self.autoencoder.posterior(images)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR in dB of the means and of samples (pixels clamped to [-1, 1]), nats and spread of a latent value."""
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
        """Write the autoencoder as an embedded model whose scaled latents have unit variance."""
        self.autoencoder.config = replace(
            self.autoencoder.config, scaling_factor=float(f"{1 / metrics['latent_std']:.4g}")
        )
        self.autoencoder.save_pretrained(directory, torch.float16)
        write_training_card(
            directory, self.recipe, self.autoencoder, "image-tokenizer", "kl", metrics, steps, paper="2406.11838"
        )
