"""SparseVLM version 1 at one layer: raters, ranking, what stays, and the clusters of what goes."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.methods.fastv import best_visual
from vistok.projectors.methods.sparsevlm import cluster_means, recycled, text_raters

SYSTEM = "sparsevlm"


def select(case: Case) -> None:
    config, hidden = case.config, case.inputs["hidden"]
    start, count = config["visual_start"], config["visual_tokens"]
    visual = torch.zeros(hidden.shape[:2], dtype=torch.bool)
    visual[:, start : start + count] = True
    behind = start + count
    raters = text_raters(hidden[0, visual[0]], hidden[0, behind : behind + config["text_tokens"]])
    case.equal(raters.nonzero().squeeze(1), "rater_index")
    scores = case.inputs["attention"].mean(1)[:, behind:][:, raters.nonzero().squeeze(1)].mean(1)
    case.close(scores[:, start:behind], "relation")
    stays = best_visual(scores, visual, [config["keep"]] * len(hidden))
    case.equal(stays[:, start:behind], "keep_mask")
    gone = (visual & ~stays)[0].nonzero().squeeze(1)
    again = gone[recycled(scores[0, gone], config["recycle_fraction"])]
    case.close(hidden[:, again], "recycled_tokens")
    case.close(cluster_means(hidden[0, again], config["cluster_divisor"])[0][None], "merged")


ADAPTERS = {"select": select}
