"""READ: similarity of <SEG> to the visual tokens, and the points it becomes."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.projectors.grounding.points import similarity, similarity_points

SYSTEM = "read"


def points(case: Case) -> None:
    config = case.config
    scores = similarity(case.inputs["image_hidden"], case.inputs["seg_hidden"])
    case.close(scores, "similarity")
    found = similarity_points(
        scores[0, :, 0],
        tuple(config["image_hw"]),
        config["num_points"],
        config["t_pos"],
        config["t_neg"],
        config["down_sample"],
    )
    case.close(found.xy, "points_xy")
    case.equal(found.labels, "labels")


ADAPTERS = {"points": points}
