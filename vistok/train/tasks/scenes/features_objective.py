"""What ``scenes-features`` is trained on: heads that say what is on a scene, and scenes that are blurred and noisy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import BACKGROUNDS, COLOURS, NUM_CLASSES, SHAPES, SIZES, Scenes, render, sample_scenes
from vistok.models.vision.scenes import CELLS, CHANNELS, DIM, SIDE, SceneFeatures
from vistok.ops.noise import derive_seed

WORST_QUALITY = (2.0, 0.2)  # blur in pixels and standard deviation of the noise, on pictures in [-1, 1]


def scene_targets(scenes: Scenes) -> dict[str, Tensor]:
    """Returns what the training heads must say about B scenes.

    Returns:
        ``shape``, ``colour`` and ``size`` int64 [B, 8, 8], of the object whose box the centre of a cell lies in, one
        past the last index where there is none; ``kinds`` float32 [B, 48], 1 where an object of that shape and colour
        is present; ``background`` int64 [B].
    """
    present = scenes.present
    at = (torch.arange(CELLS, dtype=torch.float64) + 0.5) / CELLS
    inside = (at - scenes.centre[..., None]).abs() < scenes.radius[..., None, None]  # [B, 4, (x, y), 8]
    owned = inside[:, :, 1, :, None] & inside[:, :, 0, None, :] & present[..., None, None]  # [B, 4, 8, 8]
    empty, owner = ~owned.any(1), owned.int().argmax(1).flatten(1)
    cells = {
        name: getattr(scenes, name).gather(1, owner).view_as(empty).masked_fill(empty, len(names))
        for name, names in (("shape", SHAPES), ("colour", COLOURS), ("size", SIZES))
    }
    return {**cells, "kinds": scenes.kinds_present.float(), "background": scenes.background}


def corrupt(images: Tensor, quality: Tensor, generator: torch.Generator) -> Tensor:
    """Returns pictures blurred by a Gaussian of ``quality[:, 0]`` pixels, with noise of ``quality[:, 1]``.

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
    """Returns arguments of the objective for scenes from ``start`` of a world, half of them blurred and noisy.

    Returns:
        ``images`` [count, 3, 64, 64], ``quality`` [count, 2] in [0, 1] and the entries of :func:`scene_targets`.
    """
    scenes = sample_scenes(count, seed, start)
    generator = torch.Generator().manual_seed(derive_seed(seed, start))
    drawn = torch.rand(count, 3, generator=generator)
    quality = drawn[:, :2] * (drawn[:, 2:] < 0.5)
    images = corrupt(render(scenes, SIDE), quality * torch.tensor(WORST_QUALITY), generator)
    return {"images": images, "quality": quality, **scene_targets(scenes)}


class SceneFeaturesObjective(nn.Module):
    """The network with the heads that train it: one on every cell of the last map, one on the features."""

    def __init__(self, network: SceneFeatures):
        super().__init__()
        self.network = network
        self.cell_sizes = (len(SHAPES) + 1, len(COLOURS) + 1, len(SIZES) + 1, 3 * 4)
        self.sizes = (NUM_CLASSES, len(BACKGROUNDS), 2)
        self.cell_heads = nn.Conv2d(CHANNELS, sum(self.cell_sizes), 1)
        self.heads = nn.Linear(DIM, sum(self.sizes))

    def forward(
        self,
        images: Tensor,
        shape: Tensor,
        colour: Tensor,
        size: Tensor,
        kinds: Tensor,
        background: Tensor,
        quality: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and metrics of a :func:`training_batch`."""
        maps = self.network.trunk(images.contiguous(memory_format=torch.channels_last))
        said_shape, said_colour, said_size, said_pixels = self.cell_heads(maps).float().split(self.cell_sizes, 1)
        said_kinds, said_background, said_quality = self.heads(self.network.pool(maps)).float().split(self.sizes, 1)
        pixels = F.pixel_unshuffle(F.adaptive_avg_pool2d(images, 2 * CELLS), 2)  # four pixels a cell
        losses = {
            "shape": F.cross_entropy(said_shape, shape),
            "colour": F.cross_entropy(said_colour, colour),
            "size": F.cross_entropy(said_size, size),
            "pixels": F.mse_loss(said_pixels, pixels) * 5,
            "kinds": F.binary_cross_entropy_with_logits(said_kinds, kinds) * 10,
            "background": F.cross_entropy(said_background, background),
            "quality": F.mse_loss(said_quality, quality) * 5,
        }
        metrics = {f"{name}_loss": loss.detach() for name, loss in losses.items()}
        metrics |= {
            f"{name}_accuracy": (said.argmax(1) == true)[true < said.shape[1] - 1].float().mean()  # on objects
            for name, said, true in (("shape", said_shape, shape), ("colour", said_colour, colour))
        }
        metrics["kinds_accuracy"] = ((said_kinds > 0) == (kinds > 0.5)).all(1).float().mean()
        metrics["background_accuracy"] = (said_background.argmax(1) == background).float().mean()
        return sum(losses.values()), metrics
