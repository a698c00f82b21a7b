"""How well pictures follow control pictures: F1 of edges, and mean intersection over union of segmentations.

They are ControlAR's own measures (arXiv 2410.02705, section 4).

Of scenes both maps are known exactly: what is asked from the scene, and what was drawn from the exact detector. Edges
agree that are at most ``TOLERANCE`` pixels apart, as in benchmarks of boundaries (BSDS).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vistok.data.scenes import SHAPES, Scenes, sample_scenes, statements
from vistok.data.scenes.controls import RENDERERS, inner_edges, shape_map
from vistok.data.scenes.language import Statement
from vistok.data.scenes.splits import HELD_OUT
from vistok.eval.decoding.estimate import Estimate, paired_estimate, ratio_estimate
from vistok.eval.scene_detector import SceneObject, detect, segment

TOLERANCE = 1  # pixels
LEAST_SCORE = 0.6  # of an object that counts, as in GenEval on scenes


def edge_f1(asked: Tensor, found: Tensor, tolerance: int = TOLERANCE) -> Estimate:
    """Returns the F1 of edges over all pictures, with its interval by the bootstrap over pictures.

    Args:
        asked: bool [B, H, W].
        found: likewise.
        tolerance: pixels along each axis within which an edge counts as found.
    """
    near_asked, near_found = (_widened(edges, tolerance) for edges in (asked, found))
    columns = [x.flatten(1).sum(1).tolist() for x in (found & near_asked, found, asked & near_found, asked)]

    def f1(right: np.ndarray, drawn: np.ndarray, met: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        precision, recall = right / np.maximum(drawn, 1), met / np.maximum(wanted, 1)
        return 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)

    return paired_estimate(f1, *columns)


def _widened(edges: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(edges[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0


def mean_iou(asked: Tensor, found: Tensor, classes: int) -> Estimate:
    """Returns the mean over classes of intersection over union, with its interval by the bootstrap over pictures.

    Classes that neither map holds count for nothing.

    Args:
        asked: classes int64 [B, H, W], -1 for background, which is a class too.
        found: likewise.
        classes: how many there are beside background.
    """
    both, either = [], []
    for number in range(-1, classes):
        mine, theirs = asked == number, found == number
        both.append((mine & theirs).flatten(1).sum(1).tolist())
        either.append((mine | theirs).flatten(1).sum(1).tolist())

    def mean(*columns: np.ndarray) -> np.ndarray:
        shared, joined = np.stack(columns[: classes + 1]), np.stack(columns[classes + 1 :])
        return (shared / np.maximum(joined, 1)).sum(0) / np.maximum((joined > 0).sum(0), 1)

    return paired_estimate(mean, *both, *either)


def holds(statement: Statement, objects: Sequence[SceneObject]) -> bool:
    """Returns whether objects are as many of each shape, and where it is told of each colour, as a caption says."""
    told = statement.with_colour
    wanted: Counter[tuple[str, str]] = Counter()
    for group in statement.groups:
        wanted[group.shape, group.colour if told else ""] += group.count
    return wanted == Counter((each.shape, each.colour if told else "") for each in objects)


@dataclass(frozen=True)
class ControlScores:
    """Scores of drawn pictures of scenes.

    Attributes:
        edges: F1 of the objects' outlines.
        segmentation: mean intersection over union of the shapes' regions, background included.
        caption: share of pictures that hold as many objects of each shape and told colour as their caption says.
    """

    edges: Estimate
    segmentation: Estimate
    caption: Estimate


def held_out_controls(count: int, side: int, kind: str) -> tuple[Scenes, list[Statement], Tensor]:
    """Returns held-out scenes, what is said of them, and their control pictures [N, 3, side, side] in [-1, 1].

    Raises:
        KeyError: of scenes no such kind is known, see ``RENDERERS``.
    """
    scenes = sample_scenes(count, HELD_OUT)
    return scenes, statements(scenes), RENDERERS[kind](scenes, side)


def score(scenes: Scenes, said: Sequence[Statement], pictures: Tensor) -> ControlScores:
    """Returns how well pictures follow the scenes whose controls they were drawn by.

    Args:
        scenes, said: of the pictures.
        pictures: [N, 3, H, W] in [-1, 1].
    """
    asked, found = shape_map(scenes, pictures.shape[-1]), segment(pictures)
    numbers = torch.arange(len(SHAPES))[:, None, None]
    outlines = [inner_edges(each[:, None] == numbers).any(1) for each in (asked, found)]
    right = [holds(each, objects) for each, objects in zip(said, detect(pictures, LEAST_SCORE), strict=True)]
    return ControlScores(
        edge_f1(*outlines), mean_iou(asked, found, len(SHAPES)), ratio_estimate(right, [1] * len(right))
    )
