"""Train a TokenFlow (arXiv 2412.03069): pixels and the features of a semantic teacher from the same indices.

The teacher is the embedded ``scenes-features`` network, which learned to say what each part of a scene shows. The
published semantic encoder begins as its teacher and is trained on; here it stays the frozen teacher, so that its
features are computed once a step. The pixel branch begins as a trained VQ tokenizer. Of the published losses the
perceptual and adversarial ones are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.eval.reconstruction.rate_distortion import quality_by_tokens
from vistok.models.vision.scenes import CHANNELS, load_scene_features
from vistok.tokenizers.quantizers import CodebookUsage
from vistok.tokenizers.tokenflow import TokenFlow
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.options import read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import PictureData, ScenesSource, open_source
from vistok.train.tasks.pictures import PictureTask
from vistok.train.tasks.revival import RevivalData


@dataclass(frozen=True, kw_only=True)
class TokenFlowData(PictureData, RevivalData):
    """Entries of ``data`` of the ``tokenflow`` task, beside those of PictureData and RevivalData.

    Attributes:
        semantic: weight of the cosine distance of features.
    """

    semantic: float


@dataclass(frozen=True, kw_only=True)
class TokenFlowInit:
    """Entries of ``init``.

    Attributes:
        teacher: whose features the semantic branch learns, a ``scenes-features`` network.
        vq: the tokenizer that the pixel branch begins as.
    """

    teacher: str
    vq: str


class TokenFlowObjective(nn.Module):
    """Squared error of pixels, cosine distance of features, and the quantizer's losses.

    Args:
        tokenizer: what is trained.
        semantic: weight of the cosine distance.
    """

    def __init__(self, tokenizer: TokenFlow, semantic: float):
        super().__init__()
        self.tokenizer, self.semantic = tokenizer, semantic

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            features = self.tokenizer.backbone_features(images)
        out = self.tokenizer(images, features, scale_drop=torch.default_generator)
        pixel = F.mse_loss(out.images.float(), images)
        distance = 1 - F.cosine_similarity(out.semantics.float(), features.float(), dim=-1).mean()
        loss = pixel + self.semantic * distance + out.quantized.loss
        codes = out.quantized.codebook_loss
        return loss, {"pixel": pixel.detach(), "semantic": distance.detach(), "codebook": codes.detach()}


class TokenFlowTask(PictureTask):
    """The ``tokenflow`` task: see TokenFlowData and TokenFlowInit; pictures have the size ``model.image_size``.

    At the first step all codes are set to latents.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(TokenFlowData, recipe.data, "data")
        init = read_options(TokenFlowInit, recipe.init, "init")
        torch.manual_seed(recipe.seed)
        vq = VQTokenizer.from_pretrained(init.vq)
        given = {name: getattr(vq.config, name) for name in ("channels", "channel_mult", "res_blocks", "z_channels")}
        given |= {"decoder_channels": vq.config.channels, "decoder_res_blocks": vq.config.res_blocks}
        given |= {"backbone": "scenes", "backbone_width": CHANNELS, "semantic_out": CHANNELS}
        given["pixel_dim"] = vq.config.codebook_dim
        self.tokenizer = start_network(TokenFlow, None, recipe.model, given)
        for name in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
            getattr(self.tokenizer, name).load_state_dict(getattr(vq, name).state_dict())
        self.tokenizer.encoder_vqkd.load_state_dict(load_scene_features(init.teacher).trunk.state_dict())
        self.tokenizer.encoder_vqkd.requires_grad_(False)
        self.source = open_source(self.data, self.tokenizer.config.image_size)
        self.model = TokenFlowObjective(self.tokenizer, self.data.semantic)

    @property
    def _device(self) -> torch.device:
        return self.tokenizer.quantize.embedding_vqkd.weight.device

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures."""
        return {"images": self.draw_pictures(step, rows).to(self._device)}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Revives dead codes, so that the whole codebook is used."""
        if step != 1 and not self.data.revives(step):
            return
        quantizer = self.tokenizer.quantize
        images = self.draw_pictures(step, slice(0, self.recipe.batch_size))
        latents = self.tokenizer.latents(images.to(self._device))
        seen, usage = [], CodebookUsage(quantizer.size)
        for rest, index in self.tokenizer.multiscale.residuals(latents):
            seen.append(rest.movedim(1, -1).flatten(0, -2))
            usage.update(index)
        counts = torch.zeros_like(usage.counts) if step == 1 else usage.counts
        quantizer.revive(torch.cat(seen), counts, torch.Generator().manual_seed(step))

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns PSNR in dB after each scale and usage of codes; on scenes also how well semantics can be read."""
        usage = CodebookUsage(self.tokenizer.config.codebook_size)
        batches = (images.to(self._device) for images in self.held_out_pictures(32))
        points = quality_by_tokens(self.tokenizer, batches, self.tokenizer.capabilities.lengths, usage.update)
        metrics = {f"psnr_{point.setting}": point.psnr for point in points}
        held_out = self.source.held_out()
        if isinstance(held_out, ScenesSource):
            from vistok.train.tasks.scenes.probes import semantic_probes

            metrics |= semantic_probes(self.tokenizer, held_out, len(self.held_out_index()))
        return metrics | {"codebook_usage": usage.usage, "codebook_perplexity": usage.perplexity}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the tokenizer as an embedded model, its semantic teacher inside."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        self.write_card(directory, self.tokenizer, "image-tokenizer", "tokenflow", metrics, steps, paper="2412.03069")
