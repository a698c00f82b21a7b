"""GenEval: verdicts, relations, colour crops, Mask2Former post-processing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.golden.case import Case
from vistok.eval.geneval.judge import Detection, ScoringOptions, iou, judge, keep, relations
from vistok.eval.geneval.mask2former import BACKGROUNDS, colour_crop, instances
from vistok.eval.geneval.metadata import COCO_CLASSES, COLORS, RELATIONS

SYSTEM = "geneval"


def normalised(reason: str) -> list[str]:
    """Lines of a reason; two relations may be named in either order."""
    lines = []
    for line in reason.split("\n"):
        head, found, tail = line.partition("found ")
        lines.append(
            head + found + (" and ".join(sorted(tail.removesuffix(" target").split(" and "))) if found else tail)
        )
    return lines


def verdicts(case: Case) -> None:
    colours = case.config["colors"]
    assert colours == list(COLORS)
    correct = []
    rows = iter(range(len(case.inputs["boxes"])))
    for number, entry in enumerate(case.meta["cases"]):
        detections = [
            Detection(d["class"], tuple(d["box"]), d["score"], colour=d.get("color")) for d in entry["detections"]
        ]
        for detection in detections:
            row = next(rows)
            assert case.inputs["case_index"][row] == number
            assert COCO_CLASSES[case.inputs["class_index"][row]] == detection.label
            assert case.inputs["boxes"][row].tolist() == pytest.approx([*detection.box, detection.score])
        options = ScoringOptions(**entry["options"])
        kept = keep(detections, entry["metadata"]["tag"], options)
        colours_of = lambda _, found: [d.colour for d in found]  # noqa: E731
        verdict = judge(kept, entry["metadata"], colours_of, colours, options)
        expected = entry["expected"]
        assert verdict.correct == expected["correct"], entry["name"]
        assert normalised(verdict.reason) == normalised(expected["reason"]), entry["name"]
        details = {
            label: [[*map(np.float32, d.box), np.float32(d.score)] for d in kept[label]]
            for label in COCO_CLASSES
            if label in kept
        }
        assert details == expected["details"] and list(details) == list(expected["details"]), entry["name"]
        correct.append(verdict.correct)
    case.close(torch.tensor(correct).long(), "correct")


def relation_sets(case: Case) -> None:
    pairs = list(zip(case.inputs["box_a"].tolist(), case.inputs["box_b"].tolist(), strict=True))
    held = [relations(a, b, case.config["position_threshold"]) for a, b in pairs]
    case.close(torch.tensor([[r in found for r in RELATIONS] for found in held]).long(), "relations")
    case.close(torch.tensor([iou(a, b) for a, b in pairs], dtype=torch.float64), "iou")


def color_crop(case: Case) -> None:
    image = Image.fromarray(case.inputs["image"].numpy())
    boxes, masks = case.inputs["boxes"].tolist(), case.inputs["masks"].numpy()
    background = BACKGROUNDS["original" if case.config["bgcolor"] == "original" else "grey"]
    for name in list(case.outputs):
        masked = not name.startswith("crop_nomask")
        index = int(name.removeprefix("crop" if masked else "crop_nomask"))
        crop = colour_crop(image, tuple(boxes[index]), masks[index] if masked else None, background)
        case.close(torch.from_numpy(np.array(crop)), name)


def mask2former_post(case: Case) -> None:
    config = case.config
    found = instances(
        case.inputs["class_logits"],
        case.inputs["mask_logits"],
        tuple(config["padded_hw"]),
        tuple(config["resized_hw"]),
        tuple(config["original_hw"]),
        config["top_k"],
    )

    def order(queries: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.argsort(queries * config["classes"] + labels)

    ours = order(found.query_index, found.labels)
    theirs = order(case.outputs["query_index"], case.outputs["labels"])
    inverse = ours[torch.argsort(theirs)]
    for name in ("query_index", "labels", "scores", "boxes", "masks"):
        case.close(getattr(found, name)[inverse], name)
    case.close(found.masks.sum((1, 2))[inverse], "mask_area")


ADAPTERS = {
    "verdicts": verdicts,
    "relations": relation_sets,
    "color_crop": color_crop,
    "mask2former_post": mask2former_post,
}
