"""Who finds the objects and names their colours: two protocols, and the exact detector of the embedded world.

``mask2former`` and its CLIP colours are in :mod:`vistok.eval.geneval.mask2former`. Thresholds belong to the detector:
scores of one mean nothing to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from PIL import Image

from vistok.eval.geneval.judge import Detection, ScoringOptions


class Detector(Protocol):
    """Finds objects.

    Attributes:
        name: with its weights, as reports print it.
        class_names: what it can find.
        options: scoring options whose thresholds fit its scores.
    """

    name: str
    class_names: tuple[str, ...]
    options: ScoringOptions

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Returns all detections of each RGB picture, unsorted and without a threshold."""


class ColourClassifier(Protocol):
    """Names the colours of found objects.

    Attributes:
        name: with its weights, as reports print it; empty where the detector itself knows the colours.
        colour_names: all that it can name, in the order in which reasons list them.
    """

    name: str
    colour_names: tuple[str, ...]

    def colours(self, image: Image.Image, label: str, detections: Sequence[Detection]) -> list[str]:
        """Returns the colour of each detection of one class in an RGB picture."""


class DetectedColours:
    """For detectors that know the colour of what they find."""

    name = ""

    def __init__(self, colour_names: tuple[str, ...]):
        self.colour_names = colour_names

    def colours(self, image: Image.Image, label: str, detections: Sequence[Detection]) -> list[str]:
        return [detection.colour for detection in detections]


class SceneDetector:
    """The exact detector of :mod:`vistok.data.scenes`: shapes are its classes, and it knows their colours.

    A score is the overlap with the shape's silhouette: at least 0.95 on clean renders, 0.72 under a blur of one pixel.
    """

    name = "scenes"
    options = ScoringOptions(threshold=0.6, counting_threshold=0.6)

    def __init__(self) -> None:
        from vistok.data.scenes import SHAPES

        self.class_names = tuple(SHAPES)

    def detect(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """See :class:`Detector`."""
        from vistok.eval.scene_detector import detect

        found: list[list[Detection]] = [[] for _ in images]
        for size in {image.size for image in images}:
            same = [i for i, image in enumerate(images) if image.size == size]
            pixels = torch.from_numpy(np.stack([np.array(images[i]) for i in same])).permute(0, 3, 1, 2)
            for i, objects in zip(same, detect(pixels), strict=True):
                found[i] = [Detection(o.shape, tuple(o.box), o.score, colour=o.colour) for o in objects]
        return found
