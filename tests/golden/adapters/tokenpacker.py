"""TokenPacker: the projector on published keys."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.learned.tokenpacker import TokenPacker

SYSTEM = "tokenpacker"


def forward(case: Case) -> None:
    config = case.config
    module = TokenPacker(
        raw_grid=config["raw_grid"],
        embed_dim=config["embed_dim"],
        num_heads=config["num_heads"],
        hidden_size=config["hidden_size"],
        scale_factor=config["scale_factor"],
        states=tuple(range(config["kv_in"] // config["embed_dim"])),
    )
    module.load_state_dict(case.weights, strict=True)
    with torch.no_grad():
        case.close(module(case.inputs["x"], case.inputs["x_multi"]), "y")


ADAPTERS = {"forward": forward}
