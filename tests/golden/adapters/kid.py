"""KID and CMMD."""

from __future__ import annotations

import numpy as np
import torch

from tests.golden.case import Case
from vistok.eval.sets.kernel import cmmd, kernel_distance, kid_subsets, polynomial_mmd

SYSTEM = "kid"


def kid(case: Case) -> None:
    config, x, y = case.config, case.inputs["feats1"], case.inputs["feats2"]
    m = min(len(x), len(y))
    for estimator in ("biased", "unbiased", "ustat"):
        case.close(polynomial_mmd(x[:m], y[:m], estimator)[None], f"mmd2_{estimator}")

    idx1, idx2 = kid_subsets(len(x), len(y), config["subsets"], config["subset_size"], config["rng_seed"])
    assert np.array_equal(idx1, case.inputs["idx1"]) and np.array_equal(idx2, case.inputs["idx2"])
    case.close(polynomial_mmd(x[idx1], y[idx2]), "kid_per_subset")
    value = kernel_distance(x, y, config["subsets"], config["subset_size"], config["rng_seed"])
    case.close(torch.tensor([value.mean]), "kid_mean")
    case.close(torch.tensor([value.std]), "kid_std")
    case.close(torch.tensor([cmmd(x, y, config["cmmd_sigma"], config["cmmd_scale"])]), "cmmd_unit_norm")


ADAPTERS = {"kid": kid}
