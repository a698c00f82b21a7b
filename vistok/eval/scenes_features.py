"""``scenes-features``: the embedded feature network, for distances between sets of scenes without downloaded weights.

A small convolutional network that learns to name what is in a scene (:mod:`vistok.data.scenes`): which coloured shapes,
how many objects, where each shape lies, which background, and how blurred or noisy the picture is. Its penultimate
features see composition, position and picture quality. A Frechet distance on them is called ``FD scenes-features``;
it shares nothing but the formula with the FID of ImageNet papers.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import BACKGROUNDS, COLOURS, NUM_CLASSES, SHAPES, Scenes, render, sample_scenes
from vistok.data.scenes.world import MAX_OBJECTS
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict, read_state_dict

SIDE = 64
DIM = 128
WORST_QUALITY = (2.0, 0.2)  # blur in pixels and standard deviation of the noise, on pictures in [-1, 1]


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


def scene_targets(scenes: Scenes) -> dict[str, Tensor]:
    """What the training heads must say about B scenes.

    Returns:
        ``kinds`` float32 [B, 48], 1 where an object of that shape and colour is present; ``count`` int64 [B], number of
        objects less one; ``background`` int64 [B]; ``centres`` float32 [B, 6, 2], mean position of the objects of each
        shape, NaN where there is none.
    """
    present = scenes.present
    kinds = torch.zeros(len(scenes), NUM_CLASSES)
    kinds.scatter_reduce_(1, scenes.shape * len(COLOURS) + scenes.colour, present.float(), "amax")
    of_shape = F.one_hot(scenes.shape, len(SHAPES)).float() * present[..., None]  # [B, 4, 6]
    centres = torch.einsum("bos,boc->bsc", of_shape, scenes.centre.float()) / of_shape.sum(1)[..., None]
    return {"kinds": kinds, "count": present.sum(1) - 1, "background": scenes.background, "centres": centres}


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


def training_batch(count: int, seed: int, start: int) -> dict[str, Tensor]:
    """Arguments of the objective for scenes ``start...`` of a world; half of the pictures are blurred and noisy.

    Returns:
        ``images`` [count, 3, 64, 64], ``quality`` [count, 2] in [0, 1] and the entries of :func:`scene_targets`.
    """
    scenes = sample_scenes(count, seed, start)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
    drawn = torch.rand(count, 3, generator=generator)
    quality = drawn[:, :2] * (drawn[:, 2:] < 0.5)
    images = corrupt(render(scenes, SIDE), quality * torch.tensor(WORST_QUALITY), generator)
    return {"images": images, "quality": quality, **scene_targets(scenes)}


class SceneFeaturesObjective(nn.Module):
    """The network with the heads that train it."""

    def __init__(self, network: SceneFeatures):
        super().__init__()
        self.network = network
        self.sizes = (NUM_CLASSES, MAX_OBJECTS, len(BACKGROUNDS), 2 * len(SHAPES), 2)
        self.heads = nn.Linear(DIM, sum(self.sizes))

    def forward(
        self, images: Tensor, kinds: Tensor, count: Tensor, background: Tensor, centres: Tensor, quality: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of a :func:`training_batch`."""
        features = self.network(images)["features"]
        said = dict(zip(("kinds", "count", "background", "centres", "quality"), self._split(features), strict=True))
        known = centres.isfinite()
        losses = {
            "kinds": F.binary_cross_entropy_with_logits(said["kinds"], kinds) * 10,
            "count": F.cross_entropy(said["count"], count),
            "background": F.cross_entropy(said["background"], background),
            "centres": F.mse_loss(said["centres"].view_as(centres)[known], centres[known]) * 10,
            "quality": F.mse_loss(said["quality"], quality),
        }
        metrics = {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        metrics["kinds_accuracy"] = ((said["kinds"] > 0) == (kinds > 0.5)).all(1).float().mean()
        metrics["count_accuracy"] = (said["count"].argmax(1) == count).float().mean()
        metrics["background_accuracy"] = (said["background"].argmax(1) == background).float().mean()
        return sum(losses.values()), metrics

    def _split(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.heads(F.silu(features)).float().split(self.sizes, -1)


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
