"""GenEval's verdict on one picture, from detections; pure functions that need no network.

Colour and position look at the most confident detections only; counting looks at all that are kept. Reasons are worded
as the reference words them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vistok.eval.geneval.metadata import RELATIONS

Box = tuple[float, float, float, float]


class Detection(NamedTuple):
    """One object found in a picture.

    Args:
        label: class name.
        box: x1, y1, x2, y2 in pixels.
        score: confidence; compared in float32, as detectors give it.
        mask: bool [H, W], where the detector segments.
        colour: where the detector knows it.
    """

    label: str
    box: Box
    score: float
    mask: np.ndarray | None = None
    colour: str | None = None


@dataclass(frozen=True)
class ScoringOptions:
    """How pictures are scored; the thresholds belong to the detector, the published ones to Mask2Former.

    Args:
        threshold: least score (exclusive) of a detection.
        counting_threshold: the same for counting prompts.
        max_objects: detections kept a class.
        max_overlap: detections of a class that overlap more are dropped; 1 keeps all.
        position_threshold: share of the box sizes by which an offset must exceed zero.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1


class PictureVerdict(NamedTuple):
    """Whether the picture is what the prompt asks for, and if not, why."""

    correct: bool
    reason: str


def iou(a: Box, b: Box) -> float:
    """Returns the intersection over union of boxes whose last pixels count: areas are (x2 - x1 + 1)(y2 - y1 + 1)."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(x2 - x1 + 1, 0) * max(y2 - y1 + 1, 0)

    common = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - common
    return common / union if union else 0.0


def relations(a: Box, b: Box, threshold: float = 0.1) -> set[str]:
    """Returns where ``a`` lies as seen from ``b``: none, one or two of GenEval's relations."""
    box_a, box_b = np.asarray(a, np.float64).reshape(2, 2), np.asarray(b, np.float64).reshape(2, 2)
    offset = box_a.mean(0) - box_b.mean(0)
    sizes = np.abs(np.diff(box_a, axis=0) + np.diff(box_b, axis=0))[0]
    reduced = np.maximum(np.abs(offset) - threshold * sizes, 0) * np.sign(offset)
    if np.all(np.abs(reduced) < 1e-3):
        return set()
    x, y = reduced / np.linalg.norm(offset)
    held = (x < -0.5, x > 0.5, y < -0.5, y > 0.5)
    return {relation for relation, holds in zip(RELATIONS, held, strict=True) if holds}


def keep(detections: Sequence[Detection], tag: str, options: ScoringOptions) -> dict[str, list[Detection]]:
    """Returns the detections that count, most confident first, by class; classes without any are left out.

    Args:
        detections: of one picture, in any order.
        tag: the prompt's task; counting has a threshold of its own.
        options: thresholds and limits.
    """
    threshold = np.float32(options.counting_threshold if tag == "counting" else options.threshold)
    kept: dict[str, list[Detection]] = {}
    for detection in sorted(detections, key=lambda d: -np.float32(d.score)):
        chosen = kept.setdefault(detection.label, []) if np.float32(detection.score) > threshold else None
        if chosen is not None and len(chosen) < options.max_objects:
            chosen.append(detection)
    if options.max_overlap < 1:
        kept = {label: _suppress(chosen, options.max_overlap) for label, chosen in kept.items()}
    return kept


def _suppress(detections: list[Detection], max_overlap: float) -> list[Detection]:
    kept: list[Detection] = []
    for detection in detections:
        if all(iou(detection.box, other.box) < max_overlap for other in kept):
            kept.append(detection)
    return kept


ColourFunction = Callable[[str, Sequence[Detection]], Sequence[str]]


def judge(
    objects: dict[str, list[Detection]],
    metadata: dict,
    colours_of: ColourFunction,
    colour_names: Sequence[str],
    options: ScoringOptions,
) -> PictureVerdict:
    """Returns the verdict on one picture.

    Args:
        objects: what :func:`keep` kept.
        metadata: the prompt's metadata.
        colours_of: (class, detections) -> the colour of each.
        colour_names: all colours, in the order in which reasons list them.
        options: scoring options.
    """
    reasons: list[str] = []
    groups: list[list[Detection] | None] = []
    for item in metadata["include"]:
        name, count = item["class"], item["count"]
        found = objects.get(name, [])[:count]
        if len(found) < count:
            reasons.append(f"expected {name}>={count}, found {len(found)}")
            groups.append(None)
            continue
        problem = None
        if "color" in item:
            problem = _wrong_colour(item, list(colours_of(name, found)), colour_names)
        if "position" in item and problem is None:
            relation, target = item["position"]
            problem = _wrong_position(name, relation, found, groups[target], options.position_threshold)
        if problem is not None:
            reasons.append(problem)
        groups.append(found if problem is None else None)
    for item in metadata.get("exclude", []):
        found = len(objects.get(item["class"], []))
        if found >= item["count"]:
            reasons.append(f"expected {item['class']}<{item['count']}, found {found}")
    return PictureVerdict(not reasons, "\n".join(reasons))


def _wrong_colour(item: dict, colours: list[str], colour_names: Sequence[str]) -> str | None:
    wanted, count = item["color"], item["count"]
    matching = colours.count(wanted)
    if matching >= count:
        return None
    seen = ", ".join(f"{colours.count(colour)} {colour}" for colour in colour_names if colour in colours)
    return f"expected {wanted} {item['class']}>={count}, found {matching} {wanted}; and {seen}"


def _wrong_position(
    name: str, relation: str, found: list[Detection], targets: list[Detection] | None, threshold: float
) -> str | None:
    if targets is None:
        return f"no target for {name} to be {relation}"
    for detection in found:
        for target in targets:
            held = relations(detection.box, target.box, threshold)
            if relation not in held:
                seen = " and ".join(r for r in RELATIONS if r in held)
                return f"expected {name} {relation} target, found {seen} target"
    return None
