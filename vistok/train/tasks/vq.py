"""Train a VQ tokenizer with LlamaGen's losses (arXiv 2406.06525, section 2.1).

The embedded recipe uses the pixel, codebook and commitment terms, and a smoothness term of our own. A perceptual term
needs VGG weights that cannot be shipped, and scenes of flat colour gain nothing from an adversary:
``vistok.tokenizers.discriminator`` has the published adversary for those who train on photographs.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from vistok.data.scenes import render, sample_scenes
from vistok.tokenizers.vq import VQConfig, VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe

HELD_OUT_SEED = 1_000_003  # the world that no recipe trains on


class VQObjective(nn.Module):
    """Reconstruction and quantizer losses of a batch of pictures [B, 3, H, W].

    Args:
        tokenizer: what is trained.
        smoothness: weight of the latents' total variation. Left alone, the encoder dithers flat areas with many codes,
            which a generator must then predict; a little of this term makes neighbouring codes agree where the
            picture does.
    """

    def __init__(self, tokenizer: VQTokenizer, smoothness: float = 0.0):
        super().__init__()
        self.tokenizer = tokenizer
        self.smoothness = smoothness

    def forward(self, images: torch.Tensor):
        latents = self.tokenizer.latents(images)
        quantized = self.tokenizer.quantize(latents)
        reconstruction = self.tokenizer.decode_latents(quantized.latents)
        pixel = F.mse_loss(reconstruction.float(), images)
        loss = pixel + quantized.loss
        if self.smoothness:
            loss = loss + self.smoothness * total_variation(F.normalize(latents.float(), dim=1))
        self.last_indices, self.last_images = quantized.indices.detach(), images
        return loss, {"pixel_loss": pixel.detach(), "codebook_loss": quantized.codebook_loss.detach()}


def total_variation(latents: torch.Tensor) -> torch.Tensor:
    """Mean distance of neighbouring latents [B, D, h, w], along rows and columns."""
    across = (latents[..., 1:] - latents[..., :-1]).square().sum(1)
    down = (latents[..., 1:, :] - latents[..., :-1, :]).square().sum(1)
    return sum((squared + 1e-6).sqrt().mean() for squared in (across, down))


class VQTask:
    """The ``vq`` task: scenes at ``data.size`` pixels, from new weights or from those that ``init.vq`` names.

    Codes that fall out of use are revived every ``data.revive_every`` steps until step ``data.revive_until``.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        if "vq" in recipe.init:
            self.tokenizer = VQTokenizer.from_pretrained(recipe.init["vq"])
        else:
            config = dict(recipe.model)
            config["channel_mult"] = tuple(config["channel_mult"])
            self.tokenizer = VQTokenizer(VQConfig(**config))
        self.model = VQObjective(self.tokenizer, recipe.data.get("smoothness", 0.0))
        self.size = recipe.data["size"]
        self.revive_every = recipe.data.get("revive_every", 0)
        self.revive_until = recipe.data.get("revive_until", 0)
        self.counts = torch.zeros(self.tokenizer.config.codebook_size)

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        """Freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        return {"images": render(sample_scenes(rows.stop - rows.start, self.recipe.data["seed"], start), self.size)}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Revive dead codes, so that the whole codebook is used."""
        if not self.revive_every or step >= self.revive_until:
            return
        self.counts += torch.bincount(self.model.last_indices.flatten().cpu(), minlength=len(self.counts))
        if step % self.revive_every == 0:
            latents = self.tokenizer.latents(self.model.last_images)
            generator = torch.Generator().manual_seed(step)
            self.tokenizer.quantize.revive(latents.float(), self.counts, generator)
            self.counts.zero_()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR in dB (mean over held-out scenes, pixels clamped to [-1, 1]), usage and perplexity of codes."""
        device = next(self.tokenizer.parameters()).device
        psnr, counts = [], torch.zeros_like(self.counts)
        for start in range(0, self.recipe.data.get("eval_scenes", 512), 64):
            images = render(sample_scenes(64, HELD_OUT_SEED, start), self.size).to(device)
            tokens = self.tokenizer.encode(images)
            error = (self.tokenizer.decode(tokens).clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
            psnr.append(-10 * error.log10())
            counts += torch.bincount(tokens.flatten().cpu(), minlength=len(counts))
        p = counts / counts.sum()
        return {
            "psnr": torch.cat(psnr).mean().item(),
            "codebook_usage": (counts > 0).float().mean().item(),
            "codebook_perplexity": torch.special.entr(p).sum().exp().item(),
        }

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the tokenizer as an embedded model."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        write_training_card(
            directory, self.recipe, self.tokenizer, "image-tokenizer", "vq", metrics, steps, paper="2406.06525"
        )
