"""DART: pivots, and the tokens that they leave."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.methods.dart import largest_keys, spread_out

SYSTEM = "dart"


def retain(case: Case) -> None:
    keys, states = case.inputs["keys"][0], case.inputs["hidden"][0]
    start, count = case.config["image_start"], case.config["image_tokens"]
    columns = torch.arange(len(states))
    visual = (columns >= start) & (columns < start + count)
    images, texts = case.config["pivot_image_tokens"], case.config["pivot_text_tokens"]
    mine = largest_keys(keys, visual, images)
    case.close(mine.sort().values, "image_pivots")
    case.close(largest_keys(keys, columns >= start + count, texts).sort().values, "text_pivots")
    stays = torch.zeros_like(visual)
    stays[mine] = True
    each = int(count * (1 - case.config["reduction_ratio"]) / (images + texts))
    order = case.inputs["order"]
    stays |= spread_out(states, order, visual & ~stays, [each] * len(order))
    case.close(stays.nonzero().squeeze(1), "kept")


ADAPTERS = {"retain": retain}
