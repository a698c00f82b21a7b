"""Train the decoder of an upscaled VQ tokenizer: larger pictures from codes that stay as they are.

The loss is the mean absolute error of pixels, and of the differences of neighbouring pixels (arXiv 1511.05440), which
keeps edges sharp; the squared error of the reduced picture holds shapes as right as the base draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.tokenizers.vq_upscaled import UpscaledVQ
from vistok.train.options import check_entries, read_options, start_network
from vistok.train.recipe import Recipe
from vistok.train.sources import PictureData, open_source
from vistok.train.tasks.pictures import PictureTask, check_size


@dataclass(frozen=True, kw_only=True)
class UpscaledVQData(PictureData):
    """Entries of ``data``, beside those of PictureData.

    Attributes:
        size: side of the large pictures in pixels.
        gradient: weight of the term that compares neighbouring pixels' differences.
        reduced: weight of the squared error of the pictures at the base's size.
    """

    size: int
    gradient: float = 1.0
    reduced: float = 4.0


class UpscaledVQObjective(nn.Module):
    """Error of the large pictures [B, 3, H, W] that are decoded from their own codes."""

    def __init__(self, tokenizer: UpscaledVQ, gradient: float, reduced: float):
        super().__init__()
        self.tokenizer, self.gradient, self.reduced = tokenizer, gradient, reduced

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and its parts."""
        decoded = self.tokenizer(self.tokenizer.encode(images)).float()
        pixel = F.l1_loss(decoded, images)
        gradient = sum(F.l1_loss(decoded.diff(dim=axis), images.diff(dim=axis)) for axis in (-1, -2))
        scale = self.tokenizer.config.scale
        reduced = F.mse_loss(F.avg_pool2d(decoded, scale), F.avg_pool2d(images, scale))
        parts = {"pixel_loss": pixel, "gradient_loss": gradient, "reduced_loss": reduced}
        loss = pixel + self.gradient * gradient + self.reduced * reduced
        return loss, {name: part.detach() for name, part in parts.items()}


class UpscaledVQTask(PictureTask):
    """The ``vq-upscaled`` task: see UpscaledVQData; ``model`` has the entries of UpscaledVQConfig."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.data = read_options(UpscaledVQData, recipe.data, "data")
        check_entries(recipe.init, (), "init")
        self.source = open_source(self.data, self.data.size)
        torch.manual_seed(recipe.seed)
        self.tokenizer = start_network(UpscaledVQ, None, recipe.model)
        check_size(self.tokenizer.capabilities, self.data.size)
        self.model = UpscaledVQObjective(self.tokenizer, self.data.gradient, self.data.reduced)

    def batch(self, step: int, rows: slice) -> dict[str, Tensor]:
        """Returns pictures."""
        return {"images": self.draw_pictures(step, rows)}

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Returns PSNR in dB, mean over held-out pictures clamped to [-1, 1]: of the large ones, of them reduced to the
        base's size, and of the base's own."""
        device, scale = next(self.tokenizer.parameters()).device, self.tokenizer.config.scale
        found: dict[str, list[Tensor]] = {"psnr": [], "psnr_reduced": [], "psnr_base": []}
        for images in self.held_out_pictures(32):
            images = images.to(device)
            tokens, small = self.tokenizer.encode(images), F.avg_pool2d(images, scale)
            decoded = self.tokenizer.decode(tokens).clamp(-1, 1)
            found["psnr"].append(_psnr(decoded, images))
            found["psnr_reduced"].append(_psnr(F.avg_pool2d(decoded, scale), small))
            found["psnr_base"].append(_psnr(self.tokenizer.base.decode(tokens).clamp(-1, 1), small))
        return {name: torch.cat(values).mean().item() for name, values in found.items()}

    def export(self, directory: Path, metrics: dict[str, float], steps: int) -> None:
        """Writes the tokenizer as an embedded model."""
        self.tokenizer.save_pretrained(directory, torch.float16)
        parts = {"codes": self.tokenizer.config.base}
        self.write_card(directory, self.tokenizer, "image-tokenizer", "vq_upscaled", metrics, steps, parts=parts)


def _psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """Of each picture, [B]."""
    return -10 * ((decoded - images).square().mean((1, 2, 3)) / 4).log10()
