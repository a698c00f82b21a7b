"""CDPruner: relevance in CLIP's joint space, and the greedy order."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.projectors.methods.cdpruner import greedy_map, joint_relevance

SYSTEM = "cdpruner"


def select(case: Case) -> None:
    relevance = joint_relevance(case.inputs["image_embeds"], case.inputs["text_embeds"])
    case.close(relevance, "relevance")
    order = greedy_map(case.inputs["features"], relevance, case.config["keep"])
    case.close(order, "order")
    case.close(order.sort(1).values, "kept")


ADAPTERS = {"select": select}
