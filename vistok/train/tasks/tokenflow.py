"""Train a TokenFlow (arXiv 2412.03069) on scenes: pixels and the features of a semantic teacher from the same indices.

The teacher is the embedded ``scenes-features`` network, which learned to say what each part of a scene shows. The
published semantic encoder begins as its teacher and is trained on; here it stays the frozen teacher, so that its
features are computed once a step. The pixel branch begins as a trained VQ tokenizer. Of the published losses the
perceptual and adversarial ones are left out.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import Scenes, render, render_masks, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.eval.probe import linear_probe
from vistok.eval.reconstruction.rate_distortion import quality_by_tokens
from vistok.models.vision.scenes import CHANNELS, load_scene_features
from vistok.tokenizers.quantizers import CodebookUsage
from vistok.tokenizers.tokenflow import TokenFlow
from vistok.tokenizers.tokenflow_config import TokenFlowConfig
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.export import write_training_card
from vistok.train.recipe import Recipe

PROBE_SEED = 1_000_033  # scenes that the linear probes learn on


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


def object_cells(scenes: Scenes, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of a side x side grid that lie mostly in an object: bool [B, side, side], and the shape and the colour of
    each in order, int64 [n].
    """
    cover, owner = render_masks(scenes, side).max(1)
    inside = cover > 0.5
    flat = owner.flatten(1)
    shape, colour = (getattr(scenes, name).gather(1, flat).view_as(owner)[inside] for name in ("shape", "colour"))
    return inside, shape, colour


class TokenFlowTask:
    """The ``tokenflow`` task, from the teacher ``init.teacher`` and the tokenizer ``init.vq``.

    Codes that fall out of use are revived every ``data.revive_every`` steps until step ``data.revive_until``; at the
    first step, all are set to latents.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        vq = VQTokenizer.from_pretrained(recipe.init["vq"])
        shape = {name: getattr(vq.config, name) for name in ("channels", "channel_mult", "res_blocks", "z_channels")}
        entries = recipe.model | {"scales": tuple(recipe.model["scales"])} | shape
        entries |= {"decoder_channels": vq.config.channels, "decoder_res_blocks": vq.config.res_blocks}
        entries |= {"backbone": "scenes", "backbone_width": CHANNELS, "semantic_out": CHANNELS}
        self.tokenizer = TokenFlow(TokenFlowConfig(**entries, pixel_dim=vq.config.codebook_dim))
        for name in ("encoder", "decoder", "quant_conv", "post_quant_conv"):
            getattr(self.tokenizer, name).load_state_dict(getattr(vq, name).state_dict())
        self.tokenizer.encoder_vqkd.load_state_dict(load_scene_features(recipe.init["teacher"]).trunk.state_dict())
        self.tokenizer.encoder_vqkd.requires_grad_(False)
        self.model = TokenFlowObjective(self.tokenizer, recipe.data["semantic"])

    def _scenes(self, seed: int, start: int, count: int) -> tuple[Scenes, Tensor]:
        scenes = sample_scenes(count, seed, start)
        device = self.tokenizer.quantize.embedding_vqkd.weight.device
        return scenes, render(scenes, self.tokenizer.config.image_size).to(device)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Freshly drawn scenes: no picture is seen twice."""
        start = step * self.recipe.batch_size + rows.start
        return {"images": self._scenes(self.recipe.data["seed"], start, rows.stop - rows.start)[1]}

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Revive dead codes, so that the whole codebook is used."""
        every, until = self.recipe.data["revive_every"], self.recipe.data["revive_until"]
        if step != 1 and (step % every or step >= until):
            return
        size, quantizer = self.recipe.batch_size, self.tokenizer.quantize
        latents = self.tokenizer.latents(self._scenes(self.recipe.data["seed"], step * size, size)[1])
        seen, usage = [], CodebookUsage(quantizer.size)
        for rest, index in self.tokenizer.multiscale.residuals(latents):
            seen.append(rest.movedim(1, -1).flatten(0, -2))
            usage.update(index)
        counts = torch.zeros_like(usage.counts) if step == 1 else usage.counts
        quantizer.revive(torch.cat(seen), counts, torch.Generator().manual_seed(step))

    def _semantic_codes(self, seed: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Semantic codes of the cells inside objects, [n, D], with their shapes and colours [n]."""
        codes, shapes, colours = [], [], []
        for start in range(0, count, 32):
            scenes, images = self._scenes(seed, start, min(32, count - start))
            maps = self.tokenizer.code_maps(self.tokenizer.encode(images)).cpu()
            inside, shape, colour = object_cells(scenes, maps.shape[-1])
            codes.append(maps[:, : self.tokenizer.config.semantic_dim].movedim(1, -1)[inside])
            shapes.append(shape)
            colours.append(colour)
        return torch.cat(codes), torch.cat(shapes), torch.cat(colours)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """PSNR after each scale, accuracy of linear probes on the semantic codes, and usage of codes."""
        count = self.recipe.data.get("eval_scenes", 128)
        usage = CodebookUsage(self.tokenizer.config.codebook_size)
        _, images = self._scenes(HELD_OUT, 0, count)
        lengths = self.tokenizer.capabilities.lengths
        points = quality_by_tokens(self.tokenizer, images.split(32), lengths, usage.update)
        codes, *labels = self._semantic_codes(PROBE_SEED, 2 * count)
        held_out, *held_out_labels = self._semantic_codes(HELD_OUT, count)
        probes = {
            f"probe_{name}": linear_probe(codes, label, held_out, expected)
            for name, label, expected in zip(("shape", "colour"), labels, held_out_labels, strict=True)
        }
        usages = {"codebook_usage": usage.usage, "codebook_perplexity": usage.perplexity}
        return {f"psnr_{point.setting}": point.psnr for point in points} | probes | usages

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Write the tokenizer as an embedded model, its semantic teacher inside."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        write_training_card(
            directory, self.recipe, self.tokenizer, "image-tokenizer", "tokenflow", metrics, steps, paper="2412.03069"
        )
