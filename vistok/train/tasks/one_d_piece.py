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

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.errors import VistokError
from vistok.eval.reconstruction.rate_distortion import powers_of_two, quality_by_tokens
from vistok.ops.noise import derive_seed
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN
from vistok.tokenizers.quantizers import CodebookUsage
from vistok.tokenizers.tail_drop import sample_lengths
from vistok.tokenizers.titok import TiTok
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe
from vistok.train.tasks.patch_codes import PatchCodes, distance_to_points, spherical_kmeans
from vistok.train.tasks.spatial_start import copy_by_position, dithering_order, fit_by_least_squares, inputs_of
from vistok.train.tasks.vq import Adversary, adversarial_weight, perceptual_distance

ANCHOR_SCENES = 256


class OneDPieceObjective(nn.Module):
    """Loss of pictures [B, 3, H, W] decoded from their first ``keep`` [B] tokens.

    Args:
        tokenizer: what is trained.
        proxy: whose codes are predicted; pixels are painted if None.
        adversary: trained against the tokenizer; none if None.
        perceptual: distance [B] of two batches of pictures; none if None.
        perceptual_weight: of its mean.
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
        anchor: OrderedPatches | None = None,
        anchor_weight: float = 0.0,
    ):
        super().__init__()
        self.tokenizer, self.proxy, self.adversary, self.perceptual = tokenizer, proxy, adversary, perceptual
        self.perceptual_weight = perceptual_weight
        self.anchor, self.anchor_weight = anchor, anchor_weight

    def forward(
        self, images: Tensor, keep: Tensor, adversarial: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its parts; ``adversarial`` is the weight of the adversarial term in this step."""
        latents = self.tokenizer.latents(images)
        out, quantized = self.tokenizer.from_latents(latents, keep)
        metrics = {"codebook_loss": quantized.codebook_loss.detach()}
        if self.proxy is not None:
            loss = F.cross_entropy(out.float(), self.proxy.encode(images))
            return loss + quantized.loss, metrics | {"proxy_loss": loss.detach()}
        loss = F.mse_loss(out.float(), images)
        metrics["pixel_loss"] = loss.detach()
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


def with_pixel_decoder(tokenizer: TiTok, proxy: MaskGITVQGAN) -> TiTok:
    """A network of the first stage with the proxy's decoder attached, its encoder side frozen: what stage 2 trains.

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
    for part in (whole.encoder, whole.quantize):
        part.requires_grad_(False)
    whole.latent_tokens.requires_grad_(False)
    return whole


class OrderedPatches(nn.Module):
    """What each token is drawn to: the point of the patch at its place in the dithering order.

    Args:
        config: of the tokenizer, which has at most as many tokens as patches.
        images: pictures [B, 3, H, W] in [-1, 1] that the points are fitted to.

    Raises:
        VistokError: codes are not normalised, or the grid's side is no power of two.
    """

    def __init__(self, config: TiTokConfig, images: Tensor):
        super().__init__()
        if not config.l2_norm:
            raise VistokError("tokens are drawn to points of a sphere: set model.l2_norm, or leave data.anchor out.")
        self.points = PatchCodes(images, config.patch_size, config.token_size)
        self.register_buffer("order", dithering_order(config.grid)[: config.num_tokens], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] to points [B, C, N]."""
        return self.points(images).flatten(2)[:, :, self.order]


PLACE, SHARPNESS = 1.0, 1.5  # of ``start_spatially``: scale of positions, and of what the first attention compares


@torch.no_grad()
def start_spatially(tokenizer: TiTok, anchor: OrderedPatches, images: Tensor, generator: torch.Generator) -> None:
    """Start a tokenizer as ``vistok.train.tasks.spatial_start`` says.

    Args:
        tokenizer: one that paints pixels from normalised VQ codes.
        anchor: what its tokens begin as.
        images: pictures [B, 3, H, W] in [-1, 1] to start the codes from.
        generator: draws the first codebook.
    """
    config = tokenizer.config
    for part in (tokenizer.encoder, tokenizer.decoder):
        width = part.positional_embedding.shape[1]
        places = PLACE * torch.randn(config.grid**2, width // 2)  # none resembles another
        places = F.pad(places - places.mean(1, keepdim=True), (0, width // 2))  # the other half is the picture's
        part.positional_embedding[1:] = places
        part.latent_token_positional_embedding.copy_(places[anchor.order])
        attention = part.transformer[0].attn
        query, key, value = attention.in_proj_weight.chunk(3)
        copy_by_position(query.mul_(SHARPNESS), key, value, attention.out_proj.weight)
    encoder, decoder = tokenizer.encoder, tokenizer.decoder
    points = anchor(images).transpose(1, 2).flatten(0, 1)
    states = inputs_of(encoder.conv_out, lambda: tokenizer.latents(images)).flatten(2).transpose(1, 2)
    fit_by_least_squares(encoder.conv_out, states.flatten(0, 1), points)
    tokenizer.quantize.embedding.weight.copy_(spherical_kmeans(points, config.codebook_size, generator))

    nn.init.dirac_(decoder.conv_out.weight)
    nn.init.zeros_(decoder.conv_out.bias)
    states = inputs_of(decoder.ffn[0], lambda: tokenizer(images)).flatten(2).transpose(1, 2)
    pixels = rearrange(images / 2 + 0.5, "b c (h p) (w q) -> (b h w) (p q c)", p=config.patch_size, q=config.patch_size)
    fit_by_least_squares(decoder.ffn[0], states.flatten(0, 1), pixels)


class OneDPieceTask:
    """The ``one-d-piece`` task: scenes at the tokenizer's size, from new weights or from those that ``init.tokenizer``
    names.

    ``init.proxy`` names the MaskGIT-VQGAN of the published stages, ``data.stage`` is 1 or 2. Of stage 2,
    ``data.adversarial_weight`` (published: 0.01) counts from step ``data.adversarial_from`` on (20,000), and
    ``init.lpips`` and ``init.vgg`` name the files of the perceptual term, of weight ``data.perceptual_weight`` (0.1).
    ``data.law`` is the law of kept tokens. Codes that fall out of use are revived every ``data.revive_every`` steps
    until step ``data.revive_until``. ``data.anchor`` is the weight of the term that draws tokens to the points of
    patches, see ``OrderedPatches``; new weights then start there, see ``start_spatially``.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        if "tokenizer" in recipe.init:
            self.tokenizer = TiTok.from_pretrained(recipe.init["tokenizer"])
        else:
            shapes = {key: tuple(recipe.model[key]) for key in ("encoder", "decoder")}
            self.tokenizer = TiTok(TiTokConfig(**(recipe.model | shapes)))
        anchor = None
        if weight := recipe.data.get("anchor", 0.0):
            images = self._scenes(recipe.data["seed"], 0, ANCHOR_SCENES)
            anchor = OrderedPatches(self.tokenizer.config, images)
            if "tokenizer" not in recipe.init:
                start_spatially(self.tokenizer, anchor, images, torch.Generator().manual_seed(recipe.seed))
        proxy = None
        if "proxy" in recipe.init:
            proxy = MaskGITVQGAN.from_pretrained(recipe.init["proxy"]).requires_grad_(False)
            if recipe.data.get("stage", 1) == 2:
                self.tokenizer, proxy = with_pixel_decoder(self.tokenizer, proxy), None
        adversary = Adversary() if recipe.data.get("adversarial_weight") else None
        perceptual = perceptual_distance(recipe)
        self.model = OneDPieceObjective(
            self.tokenizer, proxy, adversary, perceptual, recipe.data.get("perceptual_weight", 0.1), anchor, weight
        )
        self.law = recipe.data.get("law", "uniform")
        self.revive_every = recipe.data.get("revive_every", 0)
        self.revive_until = recipe.data.get("revive_until", 0)

    def _scenes(self, seed: int, start: int, count: int) -> Tensor:
        return render(sample_scenes(count, seed, start), self.tokenizer.config.image_size)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Freshly drawn scenes, no picture seen twice, and how many tokens each is decoded from."""
        size, seed = self.recipe.batch_size, self.recipe.data["seed"]
        generator = torch.Generator().manual_seed(derive_seed(seed, step))
        keep = sample_lengths(self.law, self.tokenizer.config.num_tokens, size, generator)
        images = self._scenes(seed, step * size + rows.start, rows.stop - rows.start)
        return {"images": images, "keep": keep[rows]} | adversarial_weight(self.recipe, step)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Revive dead codes, so that the whole codebook is used."""
        if not self.revive_every or step % self.revive_every or step >= self.revive_until:
            return
        size = self.recipe.batch_size
        images = self._scenes(self.recipe.data["seed"], step * size, 4 * size)
        latents = self.tokenizer.latents(images.to(self.tokenizer.latent_tokens.device)).float()
        quantizer = self.tokenizer.quantize
        counts = torch.bincount(quantizer.indices(latents).flatten().cpu(), minlength=quantizer.size)
        quantizer.revive(latents, counts, torch.Generator().manual_seed(step))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR in dB of held-out scenes at powers of two of tokens (the held-out loss of stage 1), and use of codes."""
        count = self.recipe.data.get("eval_scenes", 256)
        images = self._scenes(HELD_OUT, 0, count).to(self.tokenizer.latent_tokens.device)
        if self.model.proxy is not None:
            everything = torch.full((count,), self.tokenizer.config.num_tokens, device=images.device)
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
        """Write the tokenizer as an embedded model."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        write_training_card(
            directory, self.recipe, self.tokenizer, "image-tokenizer", "titok", metrics, steps, paper="2501.10064"
        )
