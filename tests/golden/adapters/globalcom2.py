"""GlobalCom2: the choice of tokens, and one picture packed as the released code packs it."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.models.families.plan import unpadded
from vistok.projectors.interface import Canvas
from vistok.projectors.methods.globalcom2 import choose_in_crops, released_packing

SYSTEM = "globalcom2"


def compress(case: Case) -> None:
    config = case.config
    side, rows, cols = config["side"], config["grid_height"], config["grid_width"]
    width, height = config["original_size_wh"]
    grid = (side, side)
    # The original LLaVA truncates where transformers rounds first.
    canvas = Canvas(rows, cols, *unpadded((rows * side, cols * side), (height, width), digits=None))
    thumb, crops = case.inputs["thumb_scores"], case.inputs["crop_scores"]
    best = thumb.topk(int(len(thumb) * config["retention_ratio"])).indices
    choice = choose_in_crops(thumb, crops, grid, canvas, config["retention_ratio"], config["temperature"])
    case.close(best, "thumb_indices")
    case.close(case.inputs["thumb_features"][best], "thumb_features")
    case.close(choice.ratios, "scales")
    case.close(choice.valid, "valid_mask")
    for j, (opinion, kept) in enumerate(zip(choice.global_scores, choice.kept, strict=True)):
        case.close(opinion, f"crop{j}.global_scores")
        case.close(kept, f"crop{j}.kept_in_unpadded")
    packed = released_packing(case.inputs["crop_features"], choice, canvas, grid, case.inputs["image_newline"])
    case.close(packed.to(torch.float16), "crops_packed_fp16")


ADAPTERS = {"compress": compress}
