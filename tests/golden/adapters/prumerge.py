"""PruMerge: adaptive tokens by falling attention, then the token of the rest."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.models.families.attention import LayerAttention
from vistok.projectors.methods.prumerge import merge_into, outlier_count

SYSTEM = "prumerge"


def merge(case: Case) -> None:
    layer = LayerAttention(case.inputs["q_last"][:, :1], case.inputs["k_last"], heads=1)
    attention, keys = layer.full_width_attention(), layer.patch_keys()
    rows = []
    for features, k, a in zip(case.inputs["features"], keys, attention, strict=True):
        kept = a.topk(outlier_count(a, case.config["iqr_factor"])).indices
        rows.append(merge_into(features, k, a, kept, case.config["neighbours"]))
    case.close(torch.stack(rows), "tokens")


ADAPTERS = {"merge": merge}
