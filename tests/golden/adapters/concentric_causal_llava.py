"""Concentric causal attention as CCA-LLaVA prefills it: rings, positions and permission of one image in a prompt."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.ops.concentric import concentric_layout, concentric_mask, ring_index

SYSTEM = "concentric_causal_llava"


def positions_mask(case: Case) -> None:
    start, side, after = (case.config[name] for name in ("image_start", "grid", "text_after"))
    layout = concentric_layout(start + side * side + after, [(start, side, side)])
    case.equal(ring_index(side, side), "ring_index")
    case.equal(layout.position[None], "position_ids")
    case.equal(concentric_mask(layout), "allowed")


ADAPTERS = {"positions_mask": positions_mask}
