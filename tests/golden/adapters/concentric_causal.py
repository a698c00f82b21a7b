"""Concentric causal attention: rings, positions and mask of text, one image, text."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.ops.concentric import concentric_layout, concentric_mask, ring_index

SYSTEM = "concentric_causal"


def positions_mask(case: Case) -> None:
    config = case.config
    height, width = config.get("H", config.get("grid")), config.get("W", config.get("grid"))
    length = config["prefix"] + height * width + config["suffix"]
    layout = concentric_layout(length, [(config["prefix"], height, width)])
    case.equal(ring_index(height, width), "ring")
    case.equal(layout.position, "position_ids")
    case.equal(concentric_mask(layout), "mask")


ADAPTERS = {"positions_mask": positions_mask}
