"""Train a VQ tokenizer with LlamaGen's losses (arXiv 2406.06525, section 2.1), and an anchor of our own.

Pixel, codebook and commitment terms are always on. The perceptual term needs LPIPS weights that cannot be shipped, so
a recipe names their files; the adversarial one joins at a step that the recipe names. The embedded recipe goes without
both: scenes of flat colour gain nothing from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate.utils import gather
from torch import Tensor, nn

from vistok.tokenizers.vq import VQTokenizer
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import PictureData, open_source
from vistok.train.tasks.adversary import (
    AdversarialData,
    Adversary,
    PerceptualInit,
    adversarial_weight,
    build_adversary,
    perceptual_distance,
)
from vistok.train.tasks.pictures import PictureTask, check_size
from vistok.train.tasks.revival import RevivalData
from vistok.train.tasks.starts.patch_codes import PatchCodes, distance_to_points, spherical_kmeans

ANCHOR_PICTURES = 1024


@dataclass(frozen=True, kw_only=True)
class VQData(PictureData, AdversarialData, RevivalData):
    """Entries of ``data`` of the ``vq`` task, beside those of PictureData, AdversarialData and RevivalData.

    Attributes:
        size: side of the pictures in pixels.
        anchor: weight of the term that draws latents to points of their own patches, see ``starts.patch_codes``; a new
            codebook then starts as the k-means of such points.
    """

    size: int
    anchor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class VQInit(PerceptualInit):
    """Entries of ``init``, beside those of PerceptualInit.

    Attributes:
        vq: weights to go on from; new ones of the shape ``model`` if absent.
    """

    vq: str | None = None


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

    def forward(self, images: Tensor, adversarial: Tensor | None = None):
        """Returns the loss and its parts; ``adversarial`` is the weight of the adversarial term in this step."""
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


class VQTask(PictureTask):
    """The ``vq`` task: see VQData and VQInit."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data, init = read_options(VQData, recipe.data, "data"), read_options(VQInit, recipe.init, "init")
        self.source = open_source(self.data, self.data.size)
        torch.manual_seed(recipe.seed)
        self.tokenizer = start_network(VQTokenizer, init.vq, recipe.model)
        check_size(self.tokenizer.capabilities, self.data.size)
        adversary = build_adversary(self.data)
        anchor = self._anchor(fill=init.vq is None) if self.data.anchor else None
        self.model = VQObjective(self.tokenizer, anchor, self.data.anchor, adversary, perceptual_distance(init))
        self.counts = torch.zeros(self.tokenizer.config.codebook_size)

    def _anchor(self, fill: bool) -> PatchCodes:
        """Returns what latents are drawn to, from some pictures; a new codebook is filled with their k-means."""
        config = self.tokenizer.config
        images = self.first_pictures(ANCHOR_PICTURES)
        anchor = PatchCodes(images, config.downsample, config.codebook_dim)
        if fill:
            points = anchor(images).movedim(1, -1).flatten(0, 2)
            centres = spherical_kmeans(points, config.codebook_size, torch.Generator().manual_seed(self.data.seed))
            self.tokenizer.quantize.embedding.weight.data.copy_(centres)
        return anchor

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures, and the weight of the adversarial term if there is one."""
        return {"images": self.draw_pictures(step, rows)} | adversarial_weight(self.data, step)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Revives dead codes, so that the whole codebook is used."""
        if not self.data.revive_every or step >= self.data.revive_until:
            return
        # Of all processes' rows, so that all give the codes the same new places.
        indices = gather(self.model.last_indices.flatten())
        self.counts += torch.bincount(indices.cpu(), minlength=len(self.counts))
        if self.data.revives(step):
            latents = self.tokenizer.latents(gather(self.model.last_images.contiguous()))
            generator = torch.Generator().manual_seed(step)
            self.tokenizer.quantize.revive(latents.float(), self.counts, generator)
            self.counts.zero_()

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns PSNR in dB (mean over held-out pictures, clamped to [-1, 1]), usage and perplexity of codes."""
        device = next(self.tokenizer.parameters()).device
        psnr, counts = [], torch.zeros_like(self.counts)
        for images in self.held_out_pictures(64):
            images = images.to(device)
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
        """Writes the tokenizer as an embedded model."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        self.write_card(directory, self.tokenizer, "image-tokenizer", "vq", metrics, steps, paper="2406.06525")
