"""How well a linear map reads from frozen patch features which pixels of a scene belong to which shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vistok.data.scenes import SHAPES, Scenes, render_masks
from vistok.data.scenes.splits import PROBES
from vistok.train.sources import ScenesSource

STEPS, RATE, ROWS = 300, 3e-2, 4096
Features = Callable[[Tensor], Tensor]


def shape_masks(scenes: Scenes, side: int) -> Tensor:
    """Returns what every pixel shows: a shape of SHAPES, or their number for background, int64 [B, side, side]."""
    cover, owner = render_masks(scenes, side).max(1)
    shapes = scenes.shape.gather(1, owner.flatten(1)).view_as(owner)
    return shapes.where(cover > 0.5, len(SHAPES))


def segmentation_probe(features: Features, held_out: ScenesSource, count: int) -> dict[str, float]:
    """Returns the mean intersection over union of the shapes (background left out), and the share of right pixels.

    A linear map from each patch's features to the classes of its pixels is fitted by AdamW with cross-entropy.

    Args:
        features: from pictures [B, 3, H, W] in [-1, 1] to [B, N, D], N patches of a square grid.
        held_out: the scenes that are measured on; the probe learns on others.
        count: how many it learns on; it is measured on half as many.
    """
    x, y = _patches(features, ScenesSource(held_out.size, PROBES), count)
    seen, truth = _patches(features, held_out, max(1, count // 2))
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x, seen = (x - mean) / deviation, (seen - mean) / deviation
    classes, pixels = len(SHAPES) + 1, y.shape[1]
    generator = torch.Generator().manual_seed(0)
    probe = torch.nn.Linear(x.shape[1], pixels * classes)
    torch.nn.init.zeros_(probe.weight)
    torch.nn.init.zeros_(probe.bias)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=RATE, weight_decay=1e-3)
    with torch.enable_grad():
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = RATE * (1 - step / STEPS)
            rows = torch.randint(len(x), (min(ROWS, len(x)),), generator=generator)
            logits = probe(x[rows]).unflatten(1, (pixels, classes))
            loss = F.cross_entropy(logits.flatten(0, 1), y[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        found = probe(seen).unflatten(1, (pixels, classes)).argmax(-1)
    scores = []
    for shape in range(len(SHAPES)):
        is_found, is_true = found == shape, truth == shape
        if bool(is_true.any()):
            scores.append(float((is_found & is_true).sum() / (is_found | is_true).sum()))
    return {"probe_miou": sum(scores) / max(1, len(scores)), "probe_pixels": float((found == truth).float().mean())}


def _patches(features: Features, source: ScenesSource, count: int) -> tuple[Tensor, Tensor]:
    """Features of patches [n, D] and what their pixels show, [n, pixels]."""
    values, shown = [], []
    for index in torch.arange(count).split(32):
        found = features(source.pictures(index))
        grid = round(found.shape[1] ** 0.5)
        masks = shape_masks(source.scenes(index), source.size)
        values.append(found.flatten(0, 1))
        shown.append(rearrange(masks, "b (h p) (w q) -> (b h w) (p q)", h=grid, w=grid))
    return torch.cat(values), torch.cat(shown)
