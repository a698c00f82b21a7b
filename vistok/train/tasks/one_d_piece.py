"""Train a One-D-Piece tokenizer with Tail Token Drop (arXiv 2501.10064).

The published training has two stages, and both are here. First the network predicts the codes of a frozen MaskGIT-VQGAN
(``init.proxy``) by cross-entropy. Then encoder, quantizer and latent tokens are frozen, the VQGAN's decoder is attached
(``data.stage: 2``), and what paints is trained on pixels with perceptual and adversarial terms. LPIPS and the patch
discriminator of LlamaGen stand in for ConvNeXt logits and a discriminator with blur pooling and LeCam.

The embedded recipe has neither a proxy tokenizer nor photographs: the decoder paints pixels (the head of the second
TiTok, ``legacy: false``), and one stage minimises the squared error with the quantizer's terms. The number of kept
tokens is drawn for each picture where the reference draws it for the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.errors import VistokError
from vistok.eval.reconstruction.rate_distortion import powers_of_two, quality_by_tokens
from vistok.ops.noise import derive_seed
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN
from vistok.tokenizers.quantizers import CodebookUsage
from vistok.tokenizers.tail_drop import sample_lengths
from vistok.tokenizers.titok import TiTok
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
from vistok.train.tasks.pictures import PictureTask
from vistok.train.tasks.revival import RevivalData
from vistok.train.tasks.starts.cells import FLAT, Cells, deviation, start_from_cells
from vistok.train.tasks.starts.one_d_piece import OrderedPatches, start_spatially
from vistok.train.tasks.starts.patch_codes import distance_to_points

ANCHOR_PICTURES = 256
AROUND = 4  # pixels along a side, in which contrast is measured


@dataclass(frozen=True, kw_only=True)
class OneDPieceData(PictureData, AdversarialData, RevivalData):
    """Entries of ``data`` of the ``one-d-piece`` task, beside those of PictureData, AdversarialData and RevivalData.

    Attributes:
        law: of the number of kept tokens, see ``sample_lengths``.
        stage: of the published training, where ``init.proxy`` names the codes that stage 1 predicts.
        perceptual_weight: of the perceptual term.
        contrast: weigh squared errors by the contrast around them: objects show at edges, and most of a picture has
            none.
        anchor: weight of the term that draws tokens to the points of patches, see ``starts.one_d_piece``; new weights
            then start there.
        start: ``cells``: the encoder and the codes are written in closed form, see ``starts.cells``, and what paints is
            trained alone. ``patches``: as ``anchor`` says.
        start_pictures: that codes in closed form are the k-means of.
        keep: whether the number of kept tokens is drawn for each picture, or for each step, as the reference does,
            which is faster.
        often: this many tokens are kept in every second draw, for a generator that draws so many; ``law`` alone if
            None.
    """

    law: str = "uniform"
    stage: Literal[1, 2] = 1
    perceptual_weight: float = 0.1
    contrast: bool = False
    anchor: float = 0.0
    start: Literal["patches", "cells"] = "patches"
    start_pictures: int = 512
    keep: Literal["picture", "step"] = "picture"
    often: int | None = None


@dataclass(frozen=True, kw_only=True)
class OneDPieceInit(PerceptualInit):
    """Entries of ``init``, beside those of PerceptualInit.

    Attributes:
        tokenizer: weights to go on from; new ones of the shape ``model`` if absent.
        proxy: the MaskGIT-VQGAN of the published stages.
    """

    tokenizer: str | None = None
    proxy: str | None = None


class OneDPieceObjective(nn.Module):
    """Loss of pictures [B, 3, H, W] decoded from their first ``keep`` tokens: [B], or one number for all.

    Args:
        tokenizer: what is trained.
        proxy: whose codes are predicted; pixels are painted if None.
        adversary: trained against the tokenizer; none if None.
        perceptual: distance [B] of two batches of pictures; none if None.
        perceptual_weight: of its mean.
        contrast: weigh squared errors by the contrast around them, see ``contrast_weights``.
        anchor: what latents are drawn to; nothing if None.
        anchor_weight: of the squared distance.
    """

    def __init__(
        self,
        tokenizer: TiTok,
        proxy: MaskGITVQGAN | None = None,
        adversary: Adversary | None = None,
        perceptual: nn.Module | None = None,
        perceptual_weight: float = 0.1,
        contrast: bool = False,
        anchor: OrderedPatches | None = None,
        anchor_weight: float = 0.0,
    ):
        super().__init__()
        self.tokenizer, self.proxy, self.adversary, self.perceptual = tokenizer, proxy, adversary, perceptual
        self.perceptual_weight, self.contrast = perceptual_weight, contrast
        self.anchor, self.anchor_weight = anchor, anchor_weight

    def forward(
        self, images: Tensor, keep: Tensor, adversarial: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its parts; ``adversarial`` is the weight of the adversarial term in this step."""
        latents = self.tokenizer.latents(images)
        out, quantized = self.tokenizer.from_latents(latents, keep if keep.ndim else int(keep))
        metrics = {"codebook_loss": quantized.codebook_loss.detach()}
        if self.proxy is not None:
            loss = F.cross_entropy(out.float(), self.proxy.encode(images))
            return loss + quantized.loss, metrics | {"proxy_loss": loss.detach()}
        errors = (out.float() - images).square()
        metrics["pixel_loss"] = errors.mean().detach()
        loss = ((errors * contrast_weights(images)) if self.contrast else errors).mean()
        if self.anchor is not None:
            distance = distance_to_points(latents[:, :, 0], self.anchor(images))
            loss, metrics["anchor_loss"] = loss + self.anchor_weight * distance, distance.detach()
        if self.perceptual is not None:
            distance = self.perceptual(out.float(), images).mean()
            loss, metrics["perceptual_loss"] = loss + self.perceptual_weight * distance, distance.detach()
        if adversarial is not None:
            fooled, told = self.adversary(images, out.float())
            loss = loss + adversarial * fooled + told * (adversarial > 0)
            metrics |= {"adversarial_loss": fooled.detach(), "discriminator_loss": told.detach()}
        return loss + quantized.loss, metrics


def contrast_weights(images: Tensor) -> Tensor:
    """Returns weights of the pixels of pictures [B, 3, H, W] whose mean is one, [B, 1, H, W]: the contrast of the
    ``AROUND`` x ``AROUND`` pixels that each lies among, and a little for those without."""
    contrast = F.interpolate(deviation(images, AROUND)[:, None], images.shape[-2:]) + FLAT
    return contrast / contrast.mean()


def with_pixel_decoder(tokenizer: TiTok, proxy: MaskGITVQGAN) -> TiTok:
    """Returns what stage 2 trains: a network of stage 1 with the proxy's decoder, its encoder side frozen.

    Raises:
        VistokError: the tokenizer predicts no proxy codes, or those of another proxy.
    """
    config = tokenizer.config
    if not config.legacy or config.pixel_decoder or config.proxy != proxy.config:
        raise VistokError("stage 2 needs a tokenizer of stage 1 (legacy) and the very proxy that it was trained with.")
    whole = TiTok(replace(config, pixel_decoder=True))
    parts = {"pixel_quantize": proxy.quantize, "pixel_decoder": proxy.decoder}
    extra = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    whole.load_state_dict(tokenizer.state_dict() | extra)
    freeze_codes(whole)
    return whole


def freeze_codes(tokenizer: TiTok) -> None:
    """Freezes encoder, quantizer and latent tokens, so that what paints is trained alone."""
    for part in (tokenizer.encoder, tokenizer.quantize):
        part.requires_grad_(False)
    tokenizer.latent_tokens.requires_grad_(False)


class OneDPieceTask(PictureTask):
    """The ``one-d-piece`` task: see OneDPieceData and OneDPieceInit; pictures have the tokenizer's size."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(OneDPieceData, recipe.data, "data")
        init = read_options(OneDPieceInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        self.tokenizer = start_network(TiTok, init.tokenizer, recipe.model, free=("pixel_decoder",))
        self.source = open_source(self.data, self.tokenizer.config.image_size)
        if self.data.often is not None:
            self.tokenizer.capabilities.check_length(self.data.often, self.tokenizer.config.num_tokens)
        anchor = None
        if self.data.anchor:
            images = self.first_pictures(ANCHOR_PICTURES)
            anchor = OrderedPatches(self.tokenizer.config, images)
            if init.tokenizer is None:
                start_spatially(self.tokenizer, anchor, images, torch.Generator().manual_seed(recipe.seed))
        if self.data.start == "cells":
            self._start_from_cells(new=init.tokenizer is None)
        proxy = None
        if init.proxy is not None:
            proxy = MaskGITVQGAN.from_pretrained(init.proxy).requires_grad_(False)
            if self.data.stage == 2:
                self.tokenizer, proxy = with_pixel_decoder(self.tokenizer, proxy), None
        adversary, perceptual = build_adversary(self.data), perceptual_distance(init)
        self.model = OneDPieceObjective(
            self.tokenizer,
            proxy,
            adversary,
            perceptual,
            self.data.perceptual_weight,
            self.data.contrast,
            anchor,
            self.data.anchor,
        )

    def _start_from_cells(self, new: bool) -> None:
        if self.data.anchor or self.data.stage == 2 or self.data.revive_every:
            raise VistokError(
                "'data.start: cells' trains the painter alone: leave 'data.anchor', 'data.stage' and "
                "'data.revive_every' out."
            )
        if new:
            drawn = self.source.draw(0, self.data.start_pictures)  # of a small folder, other crops of the same
            images = self.source.augmented(drawn)
            cells = Cells(self.tokenizer.config, images)
            start_from_cells(self.tokenizer, cells, images, torch.Generator().manual_seed(self.recipe.seed))
        freeze_codes(self.tokenizer)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures, and how many tokens each, or all, are decoded from."""
        generator = torch.Generator().manual_seed(derive_seed(self.data.seed, step))
        count = 1 if self.data.keep == "step" else self.recipe.batch_size
        keep = sample_lengths(self.data.law, self.tokenizer.config.num_tokens, count, generator)
        if self.data.often is not None:
            keep = keep.where(torch.rand(count, generator=generator) < 0.5, self.data.often)
        keep = keep[0] if self.data.keep == "step" else keep[rows]
        return {"images": self.draw_pictures(step, rows), "keep": keep} | adversarial_weight(self.data, step)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Revives dead codes, so that the whole codebook is used."""
        if not self.data.revives(step):
            return
        images = self.draw_pictures(step, slice(0, 4 * self.recipe.batch_size))
        latents = self.tokenizer.latents(images.to(self.tokenizer.latent_tokens.device)).float()
        quantizer = self.tokenizer.quantize
        counts = torch.bincount(quantizer.indices(latents).flatten().cpu(), minlength=quantizer.size)
        quantizer.revive(latents, counts, torch.Generator().manual_seed(step))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns PSNR in dB of held-out pictures at powers of two of tokens and use of codes; stage 1's loss."""
        images = torch.cat(list(self.held_out_pictures(64))).to(self.tokenizer.latent_tokens.device)
        if self.model.proxy is not None:
            everything = torch.full((len(images),), self.tokenizer.config.num_tokens, device=images.device)
            return {"held_out_loss": self.model(images, everything)[1]["proxy_loss"].item()}
        usage = CodebookUsage(self.tokenizer.config.codebook_size)
        points = quality_by_tokens(
            self.tokenizer, images.split(32), powers_of_two(self.tokenizer.config.num_tokens), usage.update
        )
        return {f"psnr_{point.setting}": point.psnr for point in points} | {
            "codebook_usage": usage.usage,
            "codebook_perplexity": usage.perplexity,
        }

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the tokenizer as an embedded model."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        self.write_card(directory, self.tokenizer, "image-tokenizer", "titok", metrics, steps, paper="2501.10064")
