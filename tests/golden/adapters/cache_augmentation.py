"""Differentiable cache augmentation: who sees whom, where, and what is predicted."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.context.augmentation import augmentation_layout

SYSTEM = "cache_augmentation"


def mask(case: Case) -> None:
    config = case.config
    layout = augmentation_layout(config["L"], case.inputs["points"], config["N_L"], config["N_A"])
    names = {"source": "decoder_source_token", "target": "decoder_target_token"}
    for name, value in layout._asdict().items():
        case.equal(value, names.get(name, name))


ADAPTERS = {"mask": mask}
