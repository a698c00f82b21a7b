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
    """Returns what each patch shows.

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
    """Returns how many objects of each shape, then of each colour, then the background, int64 [B, 15]."""
    present = scenes.present[..., None]
    shapes = (F.one_hot(scenes.shape, len(SHAPES)) * present).sum(1)
    colours = (F.one_hot(scenes.colour, len(COLOURS)) * present).sum(1)
    return torch.cat([shapes, colours, scenes.background[:, None]], 1)


def tower_states(tower: nn.Module, images: Tensor) -> list[Tensor]:
    """Returns the hidden states of a CLIP tower, as transformers numbers them: [V, N + 1, C] each."""
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
        """Returns the losses of patches and of CLS, of features [B, N, C] and normalised CLS [B, C]."""
        *logits, found = self.patches(self.norm(patches)).float().transpose(1, 2).split([*PATCH_CLASSES, 2], 1)
        local = sum(F.cross_entropy(x, y) for x, y in zip(logits, classes.unbind(1), strict=True))
        shown = classes[:, :1] > 0
        local = local + 10 * ((found - offsets).square() * shown).sum() / shown.sum().clamp(min=1)
        counts = self.summary(cls).float().split(CLS_CLASSES, -1)
        scene = sum(F.cross_entropy(x, y) for x, y in zip(counts, summary.unbind(1), strict=True)) / len(counts)
        return local, scene


class PlaceHeads(nn.Module):
    """What makes place readable: linear maps from patches, visual tokens and words to places in the picture.

    A tower that is asked what a patch shows has no reason to keep where it is, and loses it: relations then stay at
    chance. Patches are asked for their own place and for their object's centre, visual tokens for the centre, and the
    words of the language model that name one object for its centre. Losses are ten times the squared error, in sides.

    Args:
        width: of the patches' features.
        hidden: of the visual tokens and the language model.
    """

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.patches = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4))
        self.tokens = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 2))
        self.words = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, 2))

    def forward(
        self, patches: Tensor, tokens: Tensor, words: Tensor, offsets: Tensor, shown: Tensor, named: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the losses of the picture and of the words.

        Shape:
            patches: [B, N, C]; tokens: [B, N, D]; words: [B, K, SLOT, D].
            offsets: of each patch's object from it, [B, 2, N]; shown: whether there is one, [B, N].
            named: centre of the object that a word names, NaN where none is to be found, [B, K, SLOT, 2].
        """
        line = (torch.arange(round(patches.shape[1] ** 0.5), device=patches.device) + 0.5) / patches.shape[1] ** 0.5
        places = torch.stack(torch.meshgrid(line, line, indexing="xy")).flatten(1).T  # [N, 2]
        centres = places + offsets.transpose(1, 2)
        own, seen = self.patches(patches).float().split(2, -1)
        picture = (own - places).square().mean() + _masked_error(seen, centres, shown)
        picture = picture + _masked_error(self.tokens(tokens).float(), centres, shown)
        told = ~named[..., 0].isnan()
        return 10 * picture, 10 * _masked_error(self.words(words).float(), named.nan_to_num(), told)


def _masked_error(found: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error [..., 2] where the mask [...] holds."""
    return ((found - wanted).square().mean(-1) * mask).sum() / mask.sum().clamp(min=1)
