"""What supervises the vision tower of a small LLaVA: what each patch shows, and what the scene holds.

A published tower comes pre-trained on captions; this one learns from what the scene is: linear heads read the object at
each patch from the features that the projector gets, and a summary of the scene from the CLS token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes import BACKGROUNDS, COLOURS, SHAPES, SIZES
from vistok.data.scenes.render import render_masks
from vistok.data.scenes.world import MAX_OBJECTS, Scenes

PATCH_CLASSES = (1 + len(SHAPES), 1 + len(COLOURS), 1 + len(SIZES))  # 0: background
CLS_CLASSES = (*[1 + MAX_OBJECTS] * (len(SHAPES) + len(COLOURS)), len(BACKGROUNDS))
LEAST_COVERAGE = 0.2  # of a patch that shows an object


def patch_targets(scenes: Scenes, side: int, patch: int) -> tuple[Tensor, Tensor]:
    """What each patch shows.

    Returns:
        Shape, colour and size of its object, 0 for background, int64 [B, 3, N]; and where the object's centre lies
        as seen from the patch's, in sides of the picture, float32 [B, 2, N], zero for background.
    """
    covered, slot = F.avg_pool2d(render_masks(scenes, side), patch).flatten(2).max(1)  # [B, N]
    classes = torch.stack([kind.gather(1, slot) + 1 for kind in (scenes.shape, scenes.colour, scenes.size)], 1)
    line = (torch.arange(side // patch) + 0.5) * patch / side
    places = torch.stack(torch.meshgrid(line, line, indexing="xy")).flatten(1)  # x, y of each patch
    centres = scenes.centre.float().transpose(1, 2)  # [B, 2, slots]
    offsets = centres.gather(2, slot[:, None].expand(-1, 2, -1)) - places
    shown = (covered > LEAST_COVERAGE)[:, None]
    return classes * shown, offsets * shown


def scene_targets(scenes: Scenes) -> Tensor:
    """How many objects of each shape, then of each colour, then the background, int64 [B, 15]."""
    present = scenes.present[..., None]
    shapes = (F.one_hot(scenes.shape, len(SHAPES)) * present).sum(1)
    colours = (F.one_hot(scenes.colour, len(COLOURS)) * present).sum(1)
    return torch.cat([shapes, colours, scenes.background[:, None]], 1)


def tower_states(tower: nn.Module, images: Tensor) -> list[Tensor]:
    """The hidden states of a CLIP tower, as transformers numbers them: [V, N + 1, C] each."""
    states = [tower.pre_layrnorm(tower.embeddings(images))]
    for layer in tower.encoder.layers:
        states.append(layer(states[-1], None))
    return states


class SceneHeads(nn.Module):
    """What supervises the tower: the object at each patch, and the summary at the CLS token."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.patches = nn.Linear(width, sum(PATCH_CLASSES) + 2)
        self.summary = nn.Linear(width, sum(CLS_CLASSES))

    def forward(self, patches: Tensor, cls: Tensor, classes: Tensor, offsets: Tensor, summary: Tensor):
        """Features [B, N, C] and normalised CLS [B, C] to the losses of patches and of CLS."""
        *logits, found = self.patches(self.norm(patches)).float().transpose(1, 2).split([*PATCH_CLASSES, 2], 1)
        local = sum(F.cross_entropy(x, y) for x, y in zip(logits, classes.unbind(1), strict=True))
        shown = classes[:, :1] > 0
        local = local + 10 * ((found - offsets).square() * shown).sum() / shown.sum().clamp(min=1)
        counts = self.summary(cls).float().split(CLS_CLASSES, -1)
        scene = sum(F.cross_entropy(x, y) for x, y in zip(counts, summary.unbind(1), strict=True)) / len(counts)
        return local, scene
