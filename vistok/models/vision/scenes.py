"""``scenes-features``: the embedded feature network, for distances between sets of scenes without downloaded weights.

A small convolutional network that has learned (``recipes/scenes-features.yaml``) to say what each of 8x8 cells of a
scene (:mod:`vistok.data.scenes`) shows: which shape of which colour and size, or none, and its pixels in coarse; and,
from the features themselves, which coloured shapes are there, on which background, and how blurred and noisy the
picture is. The features are the last map, averaged over each quarter of the picture: they see composition, coarse
position and picture quality. A Frechet distance on them is called ``fd-scenes-features``; it shares nothing but the
formula with the FID of ImageNet papers.
"""

from __future__ import annotations

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from vistok.models.vision.inception import ConvNormAct, fold_batch_norms
from vistok.zoo import resolve
from vistok.zoo.checkpoint import load_strict, read_state_dict

SIDE = 64
CELLS = 8  # along a side of the last map
CHANNELS = 64  # of the last map
DIM = 4 * CHANNELS


class SceneFeatures(nn.Module):
    """Pictures [B, 3, 64, 64] in [-1, 1] -> ``{"features": [B, 256]}``; 0.4 M parameters.

    Its batch norms are there for training; trained weights come with them folded into the convolutions.
    """

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            ConvNormAct(3, 32, 4, stride=2, padding=1),  # 32 x 32 pixels
            ConvNormAct(32, 64, 3, stride=2, padding=1),  # 16 x 16
            ConvNormAct(64, 64, 3, padding=1),
            ConvNormAct(64, 128, 3, stride=2, padding=1),  # 8 x 8
            ConvNormAct(128, 128, 3, padding=1),
            ConvNormAct(128, 128, 3, padding=1),
            ConvNormAct(128, CHANNELS, 1),
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"features": self.pool(self.trunk(pixels))}

    @staticmethod
    def pool(maps: Tensor) -> Tensor:
        """Returns the means [B, 256] over the quarters of the last map [B, 64, 8, 8]."""
        return F.adaptive_avg_pool2d(maps.float(), 2).flatten(1)


def load_scene_features(path: str | Path = "scenes-features") -> SceneFeatures:
    """Returns the network with trained weights, in evaluation mode.

    Args:
        path: a weights file; by default the embedded ones.

    Raises:
        VistokError: if the file is absent or holds another network.
    """
    network = fold_batch_norms(SceneFeatures().eval())
    load_strict(network, read_state_dict(resolve(path, "model.safetensors")), "scenes-features network")
    return network.requires_grad_(False)
