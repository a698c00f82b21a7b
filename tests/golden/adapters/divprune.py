"""DivPrune: distances and the greedy order."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.projectors.methods.divprune import cosine_distance, max_min_order

SYSTEM = "divprune"


def select(case: Case) -> None:
    features = case.inputs["features"]
    distance = cosine_distance(features)
    case.close(distance, "distance")
    count = round(case.config["ratio"] * len(features))
    case.close(max_min_order(distance[None], count)[0], "selected_order")


ADAPTERS = {"select": select}
