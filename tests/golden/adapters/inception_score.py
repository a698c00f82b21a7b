"""Inception Score in its three flavours."""

from __future__ import annotations

import numpy as np
import torch

from tests.golden.case import Case
from vistok.eval.sets.inception_score import inception_score

SYSTEM = "inception_score"


def is_logits(case: Case) -> None:
    logits, config = case.inputs["logits"], case.config
    ordered = inception_score(logits, splits=config["splits"], seed=None)
    case.close(torch.tensor([ordered.mean]), "is_mean")
    case.close(torch.tensor([ordered.std]), "is_std")

    permutation = case.inputs["permutation_seed2020"]
    assert np.array_equal(np.random.RandomState(2020).permutation(len(logits)), permutation)
    shuffled = inception_score(logits, splits=config["splits"], seed=2020)
    case.close(torch.tensor([shuffled.mean]), "is_mean_shuffled")
    case.close(torch.tensor([shuffled.std]), "is_std_shuffled")

    adm = inception_score(logits, "adm", split_size=config["adm_split_size"])
    case.close(torch.tensor([adm.mean]), "is_adm_split_size")
    case.close(torch.tensor([inception_score(logits, "one-split").mean]), "is_one_split")


ADAPTERS = {"is_logits": is_logits}
