"""Blocks and key layout of the FID Inception network."""

from __future__ import annotations

import torch
from torch import nn

from tests.golden.case import Case
from vistok.models.vision.inception import (
    BlockA,
    BlockB,
    BlockC,
    BlockD,
    BlockE,
    FidInception,
    average_pool,
    fold_batch_norms,
)
from vistok.zoo.checkpoint import load_strict

SYSTEM = "fid_inception"

BLOCKS = {
    "FIDInceptionA": BlockA,
    "FIDInceptionC": BlockC,
    "FIDInceptionE_1": lambda channels: BlockE(channels, average_pool()),
    "FIDInceptionE_2": lambda channels: BlockE(channels, nn.MaxPool2d(3, stride=1, padding=1)),
    "InceptionB": BlockB,
    "InceptionD": BlockD,
}


def narrow(block: nn.Module, channels: dict[str, list[int]]) -> None:
    """Give every convolution the channel counts of the (shrunken) case."""
    for key, (in_channels, out_channels) in channels.items():
        unit = block.get_submodule(key.removesuffix(".conv.weight"))
        conv = unit.conv
        geometry = {"stride": conv.stride, "padding": conv.padding}
        unit.conv = nn.Conv2d(in_channels, out_channels, conv.kernel_size, bias=False, **geometry)
        unit.bn = nn.BatchNorm2d(out_channels, eps=unit.bn.eps)


@torch.no_grad()
def block(case: Case) -> None:
    config = case.config
    module = BLOCKS[config["reference_block"]](*config["reference_args"])
    assert {m.eps for m in module.modules() if isinstance(m, nn.BatchNorm2d)} == {config["bn_eps"]}
    narrow(module, config["channels"])
    counters = {k: v for k, v in module.state_dict().items() if k.endswith("num_batches_tracked")}
    load_strict(module, counters | case.weights, case.id)
    module.eval()
    case.close(module(case.inputs["x"]), "y")

    if "y_unpatched_torchvision" in case.outputs:
        pool, module.pool = module.pool, nn.AvgPool2d(3, stride=1, padding=1)
        case.close(module(case.inputs["x"]), "y_unpatched_torchvision")
        module.pool = pool
    case.close(fold_batch_norms(module)(case.inputs["x"]), "y")


def state_dict_keys(case: Case) -> None:
    with torch.device("meta"):
        shapes = {key: list(value.shape) for key, value in FidInception().state_dict().items()}
    assert list(shapes.items()) == list(case.meta["keys"].items())


ADAPTERS = {"block": block, "state_dict_keys": state_dict_keys}
