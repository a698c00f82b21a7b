"""HoloV: runs, their shares, and what they keep; -1 where the release fills up with zero tokens."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.methods.holov import run_shares, run_weights

SYSTEM = "holov"


def select(case: Case) -> None:
    count, found = case.config["keep"], []
    for x, a in zip(case.inputs["features"], case.inputs["attention"], strict=True):
        runs = torch.arange(len(a)).tensor_split(case.config["regions"])
        shares = run_shares(run_weights([x[run] for run in runs], [a[run] for run in runs]), count)
        pairs = zip(runs, shares, strict=True)  # a run that gets more than it has stays as it is
        kept = [run if share >= len(run) else run[a[run].topk(share).indices] for run, share in pairs]
        index = torch.full((count,), -1)
        kept = torch.cat(kept)
        index[: len(kept)] = kept
        found.append(index)
    case.close(torch.stack(found), "index")


ADAPTERS = {"select": select}
