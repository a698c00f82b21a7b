"""``scenes-features``: the embedded feature network, for distances between sets of scenes without downloaded weights.

A small convolutional network that learns to name what is in a scene (:mod:`vistok.data.scenes`): which coloured shapes,
how many objects, where each shape lies, which background, and how blurred or noisy the picture is. Its penultimate
features see composition, position and picture quality. A Frechet distance on them is called ``FD scenes-features``;
it shares nothing but the formula with the FID of ImageNet papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import BACKGROUNDS, COLOURS, NUM_CLASSES, SHAPES, Scenes, render, sample_scenes
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict, read_state_dict

SIDE = 64
DIM = 128


class SceneFeatures(nn.Module):
    """Pictures [B, 3, 64, 64] in [-1, 1] -> ``{"features": [B, 128]}``; about 0.4 M parameters."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96, 128, 128)):
        super().__init__()
        stages, channels = [], 3
        for i, width in enumerate(widths):
            stride = 1 if i == 3 else 2  # 32, 16, 8, 8, 4 pixels
            conv = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
            stages += [conv, nn.GroupNorm(8, width), nn.SiLU()]
            channels = width
        self.stages = nn.Sequential(*stages)
        self.reduce = nn.Conv2d(channels, 32, 1)
        self.project = nn.Linear(32 * 4 * 4, DIM)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        maps = self.stages(pixels)
        return {"features": self.project(F.silu(self.reduce(maps)).flatten(1))}


@dataclass(frozen=True)
class SceneTargets:
    """What the training heads must say about B corrupted scenes.

    Attributes:
        kinds: float32 [B, 48], 1 where an object of that shape and colour is present.
        count: int64 [B], number of objects less one.
        background: int64 [B].
        centres: float32 [B, 6, 2], mean position of the objects of each shape; NaN where there is none.
        quality: float32 [B, 2], blur width in pixels and standard deviation of the noise.
    """

    kinds: Tensor
    count: Tensor
    background: Tensor
    centres: Tensor
    quality: Tensor


def scene_targets(scenes: Scenes, quality: Tensor) -> SceneTargets:
    """Targets of scenes that were corrupted by ``quality`` [B, 2]."""
    present = scenes.present
    kinds = torch.zeros(len(scenes), NUM_CLASSES)
    kinds.scatter_reduce_(1, scenes.shape * len(COLOURS) + scenes.colour, present.float(), "amax")
    of_shape = F.one_hot(scenes.shape, len(SHAPES)).float() * present[..., None]  # [B, 4, 6]
    centres = torch.einsum("bos,boc->bsc", of_shape, scenes.centre.float()) / of_shape.sum(1)[..., None]
    return SceneTargets(kinds, present.sum(1) - 1, scenes.background, centres, quality)


def corrupt(images: Tensor, quality: Tensor, generator: torch.Generator) -> Tensor:
    """Blur each picture by a Gaussian of ``quality[:, 0]`` pixels and add noise of ``quality[:, 1]``.

    Args:
        images: [B, 3, S, S] in [-1, 1].
        quality: [B, 2].
        generator: of the noise.
    """
    taps = torch.arange(-4, 5, dtype=torch.float32)
    kernel = (-0.5 * (taps / quality[:, :1].clamp(min=1e-3)) ** 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # [3B, 9]
    x = F.pad(images.flatten(0, 1)[None], (4, 4, 4, 4), mode="replicate")
    x = F.conv2d(x, kernel[:, None, :, None], groups=len(kernel))
    x = F.conv2d(x, kernel[:, None, None, :], groups=len(kernel))
    noise = torch.randn(images.shape, generator=generator) * quality[:, 1, None, None, None]
    return (x.view_as(images) + noise).clamp(-1, 1)


def training_batch(count: int, seed: int, start: int) -> tuple[Tensor, SceneTargets]:
    """Pictures [count, 3, 64, 64] and targets: scenes ``start...`` of a world, half of them corrupted."""
    scenes = sample_scenes(count, seed, start)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
    drawn = torch.rand(count, 3, generator=generator)
    quality = drawn[:, :2] * torch.tensor([2.0, 0.2]) * (drawn[:, 2:] < 0.5)
    return corrupt(render(scenes, SIDE), quality, generator), scene_targets(scenes, quality)


class SceneFeaturesObjective(nn.Module):
    """The network with the heads that train it; forward returns ``(loss, metrics)``."""

    def __init__(self, network: SceneFeatures):
        super().__init__()
        self.network = network
        self.sizes = (NUM_CLASSES, 4, len(BACKGROUNDS), 2 * len(SHAPES), 2)
        self.heads = nn.Linear(DIM, sum(self.sizes))

    def forward(self, images: Tensor, targets: SceneTargets) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.network(images)["features"]
        kinds, count, background, centres, quality = self.heads(F.silu(features)).split(self.sizes, -1)
        centres = centres.view_as(targets.centres)
        known = targets.centres.isfinite()
        losses = {
            "kinds": F.binary_cross_entropy_with_logits(kinds, targets.kinds) * 10,
            "count": F.cross_entropy(count, targets.count),
            "background": F.cross_entropy(background, targets.background),
            "centres": F.mse_loss(centres[known], targets.centres[known]) * 10,
            "quality": F.mse_loss(quality, targets.quality / torch.tensor([2.0, 0.2], device=quality.device)),
        }
        metrics = {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        metrics["kinds_accuracy"] = ((kinds > 0) == (targets.kinds > 0.5)).all(1).float().mean()
        metrics["count_accuracy"] = (count.argmax(1) == targets.count).float().mean()
        metrics["background_accuracy"] = (background.argmax(1) == targets.background).float().mean()
        return sum(losses.values()), metrics


def load_scene_features(path: str | Path = "scenes-features") -> SceneFeatures:
    """The network with trained weights, in evaluation mode.

    Args:
        path: a weights file; by default the embedded ones.

    Raises:
        VistokError: if the file is absent or holds another network.
    """
    network = SceneFeatures()
    load_strict(network, read_state_dict(resolve(path, "model.safetensors")), "scenes-features network")
    return network.eval().requires_grad_(False)
