"""Masks from points: a small decoder of our own, and SAM (arXiv 2304.02643) of transformers for a named checkpoint.

The published READ gives SAM its points and the projected <SEG> state as one more prompt. The small decoder gets the
same for pictures of the embedded world, besides the similarity map and the tower's features.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from vistok.projectors.grounding.points import NEGATIVE, POSITIVE, Points

DICE_SCALE = 1000.0


class MaskDecoder(nn.Module):
    """Pixels, the tower's features, points and a <SEG> state to one mask.

    It works on a grid of half the picture's side, and its last map splits every cell into four pixels.

    Args:
        features: width of the tower's features.
        prompt: width of the projected <SEG> state.
        width: of the inner maps.
    """

    def __init__(self, features: int, prompt: int = 32, width: int = 32) -> None:
        super().__init__()
        self.pixels = nn.Conv2d(3, width, 4, stride=2, padding=1)
        self.features = nn.Linear(features, width)
        self.hints = nn.Conv2d(3, width, 1)
        self.prompt = nn.Linear(prompt, 2 * width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, pixels: Tensor, features: Tensor, hints: Tensor, prompt: Tensor) -> Tensor:
        """Returns logits of the mask [P, S, S].

        Args:
            pixels: in [-1, 1], [P, 3, S, S].
            features: of the tower's patches [P, N, C].
            hints: maps of positive points, of negative points and of similarity, see :func:`point_hints`, [P, 3, s, s].
            prompt: projected <SEG> states [P, D].
        """
        half = pixels.shape[-1] // 2
        grid = round(features.shape[1] ** 0.5)
        told = self.features(features).transpose(1, 2).unflatten(2, (grid, grid))
        x = self.pixels(pixels) + F.interpolate(told, size=(half, half), mode="bilinear")
        x = x + self.hints(F.interpolate(hints, size=(half, half), mode="bilinear"))
        scale, shift = self.prompt(prompt)[..., None, None].chunk(2, 1)
        x = F.gelu(x) * (1 + scale) + shift
        x = x + self.second(F.gelu(self.first(F.gelu(x))))
        return F.pixel_shuffle(self.last(F.gelu(x)), 2)[:, 0]


def point_hints(points: Points, scores: Tensor, image_hw: tuple[int, int], side: int = 32) -> Tensor:
    """Returns maps that tell a decoder of points and similarity, [3, side, side].

    Each point is a bump of a tenth of the side.

    Args:
        points: in pixels.
        scores: the similarity map in [0, 1], [H, W].
        image_hw: height and width of the picture that the points lie in.
        side: of the maps.
    """
    line = (torch.arange(side, device=scores.device) + 0.5) / side
    unit = points.xy / torch.tensor([image_hw[1], image_hw[0]], device=scores.device)
    across = torch.exp(-0.5 * ((line - unit[:, :1]) / 0.1) ** 2)  # [P, side]
    down = torch.exp(-0.5 * ((line - unit[:, 1:]) / 0.1) ** 2)
    bumps = down[:, :, None] * across[:, None]
    maps = [(bumps * (points.labels == label)[:, None, None]).sum(0) for label in (POSITIVE, NEGATIVE)]
    shown = F.interpolate(scores[None, None], size=(side, side), mode="bilinear")[0, 0]
    return torch.stack([*(1 - torch.exp(-m) for m in maps), shown])


def mask_losses(logits: Tensor, targets: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """Returns binary cross-entropy (a mean over pixels and masks) and Dice loss as READ computes it.

    Args:
        logits, targets: [P, H, W]; targets in [0, 1].
        eps: added above and below the fraction of the Dice loss, for masks without a pixel.
    """
    bce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").flatten(1).mean(1).mean()
    said, true = logits.sigmoid().flatten(1), targets.flatten(1)
    both = 2 * (said / DICE_SCALE * true).sum(1)
    dice = 1 - (both + eps) / ((said / DICE_SCALE).sum(1) + (true / DICE_SCALE).sum(1) + eps)
    return bce, dice.mean()


def mask_iou(said: Tensor, true: Tensor) -> Tensor:
    """Returns intersection over union of masks bool [..., H, W]; 1 where both are empty."""
    both = (said & true).sum((-2, -1)).double()
    either = (said | true).sum((-2, -1))
    return torch.where(either > 0, both / either.clamp(min=1), 1.0)


class SamMasks:
    """SAM of transformers, prompted with points and, where it has the width for it, a <SEG> state.

    Args:
        model, processor: ``SamModel`` and ``SamProcessor``.
    """

    def __init__(self, model: Any, processor: Any) -> None:
        self.model, self.processor = model, processor

    @classmethod
    def from_pretrained(cls, name: str | Path, device: Any = "cpu", dtype: Any = "float32") -> SamMasks:
        """Returns a SAM from a folder or a hub id such as ``facebook/sam-vit-base``.

        Raises:
            VistokError: there is none.
        """
        from transformers import SamModel

        from vistok.zoo.transformers import load_model, load_processor

        return cls(load_model(name, SamModel, "SAM model", device, dtype), load_processor(name))

    @property
    def width(self) -> int:
        """Returns the width of what prompts it."""
        return self.model.config.prompt_encoder_config.hidden_size

    @torch.no_grad()
    def __call__(self, picture: Image.Image, points: Points, prompt: Tensor | None = None) -> Tensor:
        """Returns the mask of a picture, bool [H, W].

        Args:
            picture: RGB.
            points: in its pixels; neutral ones are no prompt.
            prompt: a <SEG> state projected to SAM's width, [D].
        """
        told = points.labels >= 0
        inputs = self.processor(
            picture,
            input_points=[[points.xy[told].tolist()]] if bool(told.any()) else None,
            input_labels=[[points.labels[told].tolist()]] if bool(told.any()) else None,
            return_tensors="pt",
        ).to(self.model.device)
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(self.model.dtype))
        if bool(told.any()):
            sparse, dense = self.model.prompt_encoder(
                inputs["input_points"].to(self.model.dtype), inputs["input_labels"], None, None
            )
        else:
            sparse, dense = embeddings.new_zeros(1, 1, 0, self.width), self._no_mask(embeddings)
        if prompt is not None:
            sparse = torch.cat([sparse, prompt.to(sparse).view(1, 1, 1, -1)], 2)
        decoded = self.model.mask_decoder(
            image_embeddings=embeddings,
            image_positional_embeddings=self.model.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        sizes = (inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu())
        (mask,) = self.processor.image_processor.post_process_masks(decoded[0].float().cpu(), *sizes)
        return mask[0, 0].bool()

    def _no_mask(self, embeddings: Tensor) -> Tensor:
        empty = self.model.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        return empty.expand(len(embeddings), -1, *embeddings.shape[-2:])
