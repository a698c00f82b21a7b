"""Precision/recall, density/coverage, realism, Vendi score."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.eval.sets.manifold import manifold_metrics, vendi_score

SYSTEM = "precision_recall"


def pr(case: Case) -> None:
    real, fake = case.inputs["real"], case.inputs["fake"]
    for chunk in (1024, 7):
        metrics = manifold_metrics(real, fake, case.config["k"], chunk)
        expected = {
            "precision": metrics.precision,
            "recall": metrics.recall,
            "adm_precision": metrics.precision,
            "adm_recall": metrics.recall,
            "prdc_precision": metrics.precision_strict,
            "prdc_recall": metrics.recall_strict,
            "density": metrics.density,
            "coverage": metrics.coverage,
        }
        for name, value in expected.items():
            case.close(torch.tensor([value], dtype=torch.float64), name)
        case.close(metrics.realism, "realism")
    case.close(torch.tensor([vendi_score(fake)], dtype=torch.float64), "vendi_fake")


ADAPTERS = {"pr": pr}
