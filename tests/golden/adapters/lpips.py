"""LPIPS heads."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.models.vision.lpips import BACKBONES, LpipsHead, scale_input
from vistok.zoo.checkpoint import load_strict

SYSTEM = "lpips"


@torch.no_grad()
def head(case: Case) -> None:
    channels = tuple(case.config["chns"])
    assert channels == BACKBONES[case.config["net"]][2]
    module = LpipsHead(channels).eval()
    load_strict(module, case.weights, case.id)
    features = [[case.inputs[f"f{k}_{i}"] for i in range(len(channels))] for k in (0, 1)]
    layers = module(*features)
    for i, layer in enumerate(layers):
        case.close(layer, f"layer{i}")
    case.close(sum(layers), "d")
    for k in (0, 1):
        if f"net_input{k}" in case.outputs:
            case.close(scale_input(case.inputs[f"x{k}"]), f"net_input{k}")


ADAPTERS = {"head": head}
