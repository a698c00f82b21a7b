"""Frechet distance and streaming covariance."""

from __future__ import annotations

import pytest
import torch

from tests.golden.case import Case
from vistok.eval.sets.frechet import frechet_distance
from vistok.eval.sets.statistics import FeatureStatistics

SYSTEM = "fid"


def fid(case: Case) -> None:
    a, b = (FeatureStatistics.of(case.inputs[name]) for name in ("feats1", "feats2"))
    for index, statistics in ((1, a), (2, b)):
        case.close(statistics.mean, f"mu{index}")
        case.close(statistics.covariance, f"sigma{index}")
    value = frechet_distance(a, b)
    assert value == pytest.approx(case.outputs["fid_exact"].item(), rel=1e-9)
    for reference in ("fid_pytorch_fid", "fid_torch_fidelity"):
        case.close(torch.tensor([value]), reference)


def stream_cov(case: Case) -> None:
    features = case.inputs["feats"]
    for sizes in (case.inputs["batch_sizes"].tolist(), [1] * len(features), [len(features)]):
        streamed = FeatureStatistics.empty(features.shape[1])
        for batch in features.split(sizes):
            streamed.update(batch)
        case.close(streamed.mean, "mu")
        case.close(streamed.covariance, "sigma")


ADAPTERS = {"fid": fid, "stream_cov": stream_cov}
