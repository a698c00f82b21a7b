"""Train a VQ tokenizer with LlamaGen's losses (arXiv 2406.06525, section 2.1), and an anchor of our own.

Pixel, codebook and commitment terms are always on. The perceptual term needs LPIPS weights that cannot be shipped, so
a recipe names their files; the adversarial one joins at a step that the recipe names. The embedded recipe goes without
both: scenes of flat colour gain nothing from them.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.tokenizers.discriminator import PatchDiscriminator, discriminator_loss, generator_loss
from vistok.tokenizers.vq import VQConfig, VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.patch_codes import PatchCodes, distance_to_points, spherical_kmeans

ANCHOR_SCENES = 1024


class Adversary(nn.Module):
    """A patch discriminator that is trained in the same step as the tokenizer.

    The reference gives it an optimizer of its own; here one backward pass serves both, as each loss reaches its own
    weights alone.
    """

    def __init__(self):
        super().__init__()
        self.discriminator = PatchDiscriminator()

    def forward(self, images: torch.Tensor, reconstruction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the tokenizer minimises, and what the discriminator does, on pictures [B, 3, H, W] in [-1, 1]."""
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        fooled = generator_loss(torch.func.functional_call(self.discriminator, fixed, (reconstruction,)))
        told = discriminator_loss(self.discriminator(images), self.discriminator(reconstruction.detach()))
        return fooled, told


class VQObjective(nn.Module):
    """Reconstruction and quantizer losses of a batch of pictures [B, 3, H, W].

    Args:
        tokenizer: what is trained.
        anchor: what latents are drawn to; nothing if None.
        anchor_weight: of the squared distance.
        adversary: trained against the tokenizer; none if None.
        perceptual: distance [B] of two batches of pictures, added to the pixel term; none if None.
    """

    def __init__(
        self,
        tokenizer: VQTokenizer,
        anchor: PatchCodes | None = None,
        anchor_weight: float = 0.0,
        adversary: Adversary | None = None,
        perceptual: nn.Module | None = None,
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.anchor, self.anchor_weight = anchor, anchor_weight
        self.adversary, self.perceptual = adversary, perceptual

    def forward(self, images: torch.Tensor, adversarial: torch.Tensor | None = None):
        """The loss and its parts; ``adversarial`` is the weight of the adversarial term in this step."""
        latents = self.tokenizer.latents(images)
        quantized = self.tokenizer.quantize(latents)
        reconstruction = self.tokenizer.decode_latents(quantized.latents)
        pixel = F.mse_loss(reconstruction.float(), images)
        metrics = {"pixel_loss": pixel.detach(), "codebook_loss": quantized.codebook_loss.detach()}
        loss = pixel + quantized.loss
        if self.anchor is not None:
            distance = distance_to_points(latents, self.anchor(images))
            loss, metrics["anchor_loss"] = loss + self.anchor_weight * distance, distance.detach()
        if self.perceptual is not None:
            distance = self.perceptual(reconstruction.float(), images).mean()
            loss, metrics["perceptual_loss"] = loss + distance, distance.detach()
        if adversarial is not None:
            fooled, told = self.adversary(images, reconstruction.float())
            loss = loss + adversarial * fooled + told * (adversarial > 0)
            metrics |= {"adversarial_loss": fooled.detach(), "discriminator_loss": told.detach()}
        self.last_indices, self.last_images = quantized.indices.detach(), images
        return loss, metrics


def perceptual_distance(recipe: Recipe) -> nn.Module | None:
    """LPIPS from the files that ``init.lpips`` and ``init.vgg`` name; None where a recipe names none."""
    if "lpips" not in recipe.init:
        return None
    from vistok.models.vision.lpips import Lpips

    return Lpips.from_files("vgg", recipe.init["lpips"], recipe.init["vgg"])


def adversarial_weight(recipe: Recipe, step: int) -> dict[str, torch.Tensor]:
    """``adversarial``, the weight of the adversarial term in a step; nothing where a recipe has no such term."""
    weight = recipe.data.get("adversarial_weight", 0.0)
    if not weight:
        return {}
    return {"adversarial": torch.tensor(weight if step >= recipe.data.get("adversarial_from", 0) else 0.0)}


class VQTask:
    """The ``vq`` task: scenes at ``data.size`` pixels, from new weights or from those that ``init.vq`` names.

    ``data.adversarial_weight`` is the weight of the adversarial term from step ``data.adversarial_from`` on (published:
    0.5 from 20,000); ``init.lpips`` and ``init.vgg`` name the files of the perceptual term, LPIPS's ``vgg.pth`` and
    torchvision's VGG-16. ``data.anchor`` is the weight of the term that draws latents to points of their own patches,
    see ``vistok.train.tasks.patch_codes``; a new codebook then starts as the k-means of such points. Codes that fall
    out of use are revived every ``data.revive_every`` steps until step ``data.revive_until``.
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
        adversary = Adversary() if recipe.data.get("adversarial_weight") else None
        self.size = recipe.data["size"]
        weight = recipe.data.get("anchor", 0.0)
        anchor = self._anchor(fill="vq" not in recipe.init) if weight else None
        self.model = VQObjective(self.tokenizer, anchor, weight, adversary, perceptual_distance(recipe))
        self.revive_every = recipe.data.get("revive_every", 0)
        self.revive_until = recipe.data.get("revive_until", 0)
        self.counts = torch.zeros(self.tokenizer.config.codebook_size)

    def _anchor(self, fill: bool) -> PatchCodes:
        """What latents are drawn to, from ``ANCHOR_SCENES`` scenes; a new codebook is filled with their k-means."""
        config, seed = self.tokenizer.config, self.recipe.data["seed"]
        images = torch.cat([render(sample_scenes(64, seed, i), self.size) for i in range(0, ANCHOR_SCENES, 64)])
        anchor = PatchCodes(images, config.downsample, config.codebook_dim)
        if fill:
            points = anchor(images).movedim(1, -1).flatten(0, 2)
            centres = spherical_kmeans(points, config.codebook_size, torch.Generator().manual_seed(seed))
            self.tokenizer.quantize.embedding.weight.data.copy_(centres)
        return anchor

    def batch(self, step: int, rows: slice) -> dict[str, torch.Tensor]:
        """Freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        scenes = sample_scenes(rows.stop - rows.start, self.recipe.data["seed"], start)
        return {"images": render(scenes, self.size)} | adversarial_weight(self.recipe, step)

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
            images = render(sample_scenes(64, HELD_OUT, start), self.size).to(device)
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
