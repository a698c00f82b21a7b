"""Visual Perception Token: the projector of the second look, with and without its condition."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.learned.perception import PerceptionProjector

SYSTEM = "vpt"


def projector(case: Case) -> None:
    config = case.config
    module = PerceptionProjector(config["input_dim"], config["output_dim"], config["projector_scale"])
    module.load_state_dict(case.weights, strict=True)
    with torch.no_grad():
        conditioned = module(case.inputs["features"], case.inputs["conditions"])
        plain = module(case.inputs["features"])
    case.close(conditioned.flatten(0, 1), "conditioned")
    case.close(plain.flatten(0, 1), "unconditioned")


ADAPTERS = {"projector": projector}
