"""Scores of pictures that were asked to show one object of the embedded world, whatever generator drew them.

A picture is right if the exact detector of scenes finds one object in it, of the asked shape and colour. The figures
that ``object_scores`` gives:

- ``detector``: share of right pictures; ``change``: its difference from the first row's, over the same objects;
- ``distance``: Frechet distance to held-out scenes of one object, None without the feature network. Only rows of one
  run compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.data.scenes import COLOURS, SHAPES, render
from vistok.data.scenes.splits import REFERENCE, single_object_scenes
from vistok.eval.decoding.comparison import Figure, Trial
from vistok.eval.decoding.estimate import ratio_estimate
from vistok.eval.decoding.images import images_of

if TYPE_CHECKING:
    from PIL.Image import Image

    from vistok.pipelines import Sample

REFERENCE_CHUNKS = 8  # of the held-out scenes


def shows(image: Image, kind: int) -> bool:
    """Returns whether the detector finds one object in an image, of the shape and colour of a kind.

    Args:
        image: of a scene.
        kind: number of shape and colour, see ``Scenes.kind``.
    """
    from vistok.eval.geneval.detectors import SceneDetector

    shape, colour = divmod(kind, len(COLOURS))
    detector = SceneDetector()
    found = [each for each in detector.detect([image])[0] if each.score >= detector.options.threshold]
    return [(each.label, each.colour) for each in found] == [(SHAPES[shape], COLOURS[colour])]


def reference_images() -> Tensor:
    """Returns held-out scenes of one object, [N, 3, 64, 64] in [-1, 1]."""
    from vistok.models.vision.scenes import SIDE

    chunks = range(REFERENCE_CHUNKS)
    return torch.cat([render(single_object_scenes(REFERENCE, chunk), SIDE) for chunk in chunks])


def object_scores(trials: Sequence[Trial], samples: Sequence[Sample]) -> list[dict[str, Figure]]:
    """Returns ``detector``, ``change`` and ``distance`` of each trial.

    Args:
        trials: what was drawn; differences are to the first.
        samples: what was asked for; their conditions are kinds.
    """
    from vistok.eval.decoding.scores import distances

    drawn, one_each = [images_of(trial) for trial in trials], [1] * len(samples)
    right = [[shows(image, x.condition) for image, x in zip(images, samples, strict=True)] for images in drawn]
    return [
        {
            "detector": ratio_estimate(mine, one_each),
            "change": ratio_estimate([a - b for a, b in zip(mine, right[0], strict=True)], one_each),
            "distance": distance,
        }
        for mine, distance in zip(right, distances(reference_images, drawn), strict=True)
    ]
