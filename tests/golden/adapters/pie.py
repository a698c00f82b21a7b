"""Positional integrity encoding: edit plans and re-rotated keys, in float32 and float64."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.ops.reencode import plan_edits, reencode_keys

SYSTEM = "pie"


def reencode(case: Case) -> None:
    config = case.config
    keys = case.inputs["k_cached"]
    plan = plan_edits(keys.shape[-2], case.inputs["edits"])
    case.equal(plan.kept, "keep_index")
    case.equal(plan.position, "new_pos")
    case.equal(plan.inserted, "insert_pos")
    case.equal(torch.tensor([plan.length]), "new_len")
    exponent = torch.arange(0, config["rotary_dim"], 2).double() / config["rotary_dim"]
    frequencies = config["theta"] ** -exponent / config.get("linear_scaling", 1.0)
    for name in ("", "_f64"):
        kept = reencode_keys(case.inputs[f"k_cached{name}"], plan.kept, plan.position, frequencies, config["layout"])
        case.close(kept, f"k_kept{name}")


ADAPTERS = {"reencode": reencode}
