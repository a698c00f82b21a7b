"""A packed convolution gives what the layer gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vistok.models.vision.inception import ConvNormAct, average_pool, fold_batch_norms
from vistok.ops.convolution import packed_convolution, packs_convolutions
from vistok.ops.linear import PackedWeight

LAYERS = {
    "1x1": nn.Conv2d(6, 8, 1),
    "3x3": nn.Conv2d(6, 8, 3, padding=1),
    "strided": nn.Conv2d(6, 8, 3, stride=2),
    "row": nn.Conv2d(6, 8, (1, 7), padding=(0, 3)),
    "groups": nn.Conv2d(6, 8, 3, groups=2),
}

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build has no oneDNN")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@torch.no_grad()
def test_it_is_the_convolution(layer, dtype):
    layer, packed = copy.deepcopy(layer).to(dtype), PackedWeight()
    for shape in ((1, 6, 9, 9), (3, 6, 12, 8), (1, 6, 7, 7)):  # packed for the first, used for all
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(dtype).contiguous(memory_format=layout)
            assert packs_convolutions(x)
            found, expected = packed_convolution(x, layer, packed), layer(x)
            torch.testing.assert_close(found, expected, atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2)
    layer.weight.mul_(2)
    torch.testing.assert_close(packed_convolution(x, layer, packed), layer(x), atol=4e-2, rtol=2e-2)


@torch.no_grad()
def test_an_average_before_a_1x1_convolution_may_follow_it():
    branch, x = ConvNormAct(6, 4, 1).eval(), torch.randn(2, 6, 7, 7)
    plain = branch(x, average_pool())
    torch.testing.assert_close(plain, branch(average_pool()(x)))
    torch.testing.assert_close(fold_batch_norms(nn.Sequential(branch))[0](x, average_pool()), plain)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
@torch.no_grad()
def test_what_is_no_number_stays_none(wrong):
    layers = nn.Sequential(ConvNormAct(3, 4, 3), ConvNormAct(4, 4, 1)).eval()
    x = torch.full((1, 3, 5, 5), wrong)
    assert not fold_batch_norms(layers)(x).isfinite().all()


def test_gradients_and_other_formats_take_the_plain_way():
    network = nn.Sequential(ConvNormAct(3, 4, 3)).eval()
    fold_batch_norms(network)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    assert not packs_convolutions(x)
    network(x).sum().backward()
    assert x.grad is not None
    with torch.no_grad():
        assert not packs_convolutions(x.double())
        plain = network.double()(x.double())
        torch.testing.assert_close(copy.deepcopy(network).float()(x).double(), plain, atol=1e-5, rtol=1e-5)
