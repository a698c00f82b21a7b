"""Scores of pictures that samplers drew of the embedded world's prompts.

The detector's score is the share of pictures that it finds fulfilled, and its difference from plain decoding's over
the same prompts and seeds; both have intervals by the bootstrap over prompts. The Frechet distance is that to held-out
scenes in the space of the embedded ``scenes-features``; it is biased in the number of pictures, so it compares only
runs of one size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

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
    """Whether the feature network of the distance is embedded."""
    return any(card.name == FEATURES and card.embedded for card in cards())


def score_trials(
    records: Sequence[dict], per_prompt: int, images: Sequence[Sequence[Image]]
) -> list[Mapping[str, Estimate | float]]:
    """Scores of the pictures of each sampler, plain decoding's first.

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
    if has_features():
        network = load_scene_features()
        real = _held_out(network)
        for score, drawn in zip(scores, images, strict=True):
            score[DISTANCE] = frechet_distance(real, picture_statistics(network, torch.stack([*map(to_tensor, drawn)])))
    return scores


def _fulfilled(records: Sequence[dict], per_prompt: int, images: Sequence[Image]) -> list[int]:
    """How many pictures of each prompt the detector finds fulfilled."""
    detector, colours = load_detector("scenes")
    asked = [record for record in records for _ in range(per_prompt)]
    pictures = zip(asked, images, map(str, range(len(images))), strict=True)
    correct = [bool(record["correct"]) for record in score_images(pictures, detector, colours)]
    return [sum(correct[start : start + per_prompt]) for start in range(0, len(correct), per_prompt)]


def _held_out(network: SceneFeatures, count: int = 2048, chunk: int = 256) -> FeatureStatistics:
    scenes = [render(sample_scenes(chunk, REFERENCE, start), SIDE) for start in range(0, count, chunk)]
    return picture_statistics(network, torch.cat(scenes))


@torch.inference_mode()
def picture_statistics(network: SceneFeatures, pictures: torch.Tensor) -> FeatureStatistics:
    """Statistics of the features of pictures [N, 3, 64, 64] in [-1, 1]."""
    return FeatureStatistics.of(torch.cat([network(part)["features"] for part in pictures.split(256)]))
