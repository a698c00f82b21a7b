"""VisPruner: important and diverse patches."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.methods.vispruner import select_view

SYSTEM = "vispruner"


def select(case: Case) -> None:
    features, attention = case.inputs["features"], case.inputs["attention"].mean(1)
    places = torch.arange(features.shape[1])
    config = case.config
    kept = [
        select_view(x, a, places, config["keep"], config["important_ratio"], config["step"])
        for x, a in zip(features, attention, strict=True)
    ]
    case.close(torch.stack(kept), "kept")


ADAPTERS = {"select": select}
