"""PVC: the order of the pixel shuffle; nothing else of it has a reference that runs."""

from __future__ import annotations

from tests.golden.case import Case
from vistok.projectors.learned.pvc import pixel_shuffle

SYSTEM = "pvc"


def shuffle(case: Case) -> None:
    case.close(pixel_shuffle(case.inputs["x"], case.config["scale_factor"]), "y")


ADAPTERS = {"pixel_shuffle": shuffle}
