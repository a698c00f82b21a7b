"""FastV: the columns that stay after layer K."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.methods.fastv import rank_visual

SYSTEM = "fastv"


def select(case: Case) -> None:
    attention = case.inputs["attention"][0].mean(0)[-1]
    start, count = case.config["sys_length"], case.config["image_tokens"]
    visual = torch.zeros(len(attention), dtype=torch.bool)
    visual[start : start + count] = True
    best = rank_visual(attention, visual, case.config["rank"])
    case.close(best, "image_topk")
    stays = ~visual
    stays[best] = True
    case.close(stays.nonzero().squeeze(1), "keep_positions")


ADAPTERS = {"select": select}
