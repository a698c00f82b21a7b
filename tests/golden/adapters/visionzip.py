"""VisionZip: dominant patches and all tokens."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.interface import top_tokens
from vistok.projectors.methods.visionzip import contextual_tokens

SYSTEM = "visionzip"


def compress(case: Case) -> None:
    dominant, contextual = case.config["dominant_num"], case.config["contextual_num"]
    hidden, metric = case.inputs["hidden"], case.inputs["metric"]
    scores = case.inputs["attention"][:, :, 0, 1:].sum(1)
    order = scores.topk(dominant, dim=1).indices + 1
    case.close(torch.cat([torch.zeros_like(order[:, :1]), order], 1), "dominant_indices")
    kept = top_tokens(scores, [dominant] * len(scores), torch.ones_like(scores, dtype=torch.bool))
    rows = []
    for h, m, index in zip(hidden, metric, kept, strict=True):
        rest = torch.ones(len(h), dtype=torch.bool)
        rest[0] = False
        rest[index + 1] = False
        rows.append(torch.cat([h[:1], h[index + 1], contextual_tokens(h[rest], m[rest], contextual)]))
    case.close(torch.stack(rows), "tokens")


ADAPTERS = {"compress": compress}
