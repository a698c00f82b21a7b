"""Scores of images that samplers drew of the embedded world's prompts.

The detector's score is the share of pictures that it finds fulfilled, and its difference from plain decoding's over
the same prompts and seeds; both have intervals by the bootstrap over prompts. The Frechet distance is that to held-out
scenes in the space of the embedded ``scenes-features``; it is biased in the number of pictures, so it compares only
runs of one size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.data.images import to_tensor
from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import REFERENCE
from vistok.eval.decoding.estimate import Estimate, ratio_estimate
from vistok.eval.geneval.evaluate import score_images
from vistok.eval.geneval.load import load_detector
from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.statistics import FeatureStatistics
from vistok.models.vision.scenes import SIDE, SceneFeatures, load_scene_features
from vistok.zoo import cards

if TYPE_CHECKING:
    from PIL.Image import Image

FEATURES = "scenes-features"
DETECTOR, GAIN, DISTANCE = "detector", "detector - AR", "FD"


def has_features() -> bool:
    """Returns whether the feature network of the distance is embedded."""
    return any(card.name == FEATURES and card.embedded for card in cards())


def score_trials(
    records: Sequence[dict], per_prompt: int, images: Sequence[Sequence[Image]]
) -> list[Mapping[str, Estimate | float]]:
    """Returns the scores of the images of each sampler, plain decoding's first.

    Args:
        records: GenEval metadata of the prompts.
        per_prompt: pictures of each, one after the other.
        images: of each sampler, ``per_prompt`` of every prompt.
    """
    right = [_fulfilled(records, per_prompt, drawn) for drawn in images]
    asked = [per_prompt] * len(records)
    scores: list[dict[str, Estimate | float]] = []
    for fulfilled in right:
        gained = [mine - theirs for mine, theirs in zip(fulfilled, right[0], strict=True)]
        scores.append({DETECTOR: ratio_estimate(fulfilled, asked), GAIN: ratio_estimate(gained, asked)})
    for score, distance in zip(scores, distances(held_out_scenes, images), strict=True):
        if distance is not None:
            score[DISTANCE] = distance
    return scores


def held_out_scenes(count: int = 2048, chunk: int = 256) -> Tensor:
    """Returns pictures of held-out scenes, [N, 3, 64, 64] in [-1, 1]."""
    return torch.cat([render(sample_scenes(chunk, REFERENCE, start), SIDE) for start in range(0, count, chunk)])


def distances(reference: Callable[[], Tensor], images: Sequence[Sequence[Image]]) -> list[float | None]:
    """Returns the Frechet distance of each sampler's images to a reference; None without the feature network.

    Args:
        reference: gives the pictures to compare with, [N, 3, 64, 64] in [-1, 1]; not called without the network.
        images: of each sampler.
    """
    if not has_features():
        return [None] * len(images)
    network = load_scene_features()
    real = picture_statistics(network, reference())
    drawn = (torch.stack([to_tensor(image) for image in each]) for each in images)
    return [frechet_distance(real, picture_statistics(network, pictures)) for pictures in drawn]


def _fulfilled(records: Sequence[dict], per_prompt: int, images: Sequence[Image]) -> list[int]:
    """Returns how many images of each prompt the detector finds fulfilled."""
    detector, colours = load_detector("scenes")
    asked = [record for record in records for _ in range(per_prompt)]
    pictures = zip(asked, images, map(str, range(len(images))), strict=True)
    correct = [bool(record["correct"]) for record in score_images(pictures, detector, colours)]
    return [sum(correct[start : start + per_prompt]) for start in range(0, len(correct), per_prompt)]


@torch.inference_mode()
def picture_statistics(network: SceneFeatures, pictures: Tensor) -> FeatureStatistics:
    """Returns the statistics of the features of pictures [N, 3, 64, 64] in [-1, 1]."""
    return FeatureStatistics.of(torch.cat([network(part)["features"] for part in pictures.split(256)]))
