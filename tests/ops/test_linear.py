"""Packed linear layers: the results, state dict and gradients of `nn.Linear`."""

import copy

import pytest
import torch
from torch import nn

from vistok.ops.linear import Int8Linear, PackedLinear, joint, least_rows, pack_linears


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 7, 128, 129])
@pytest.mark.parametrize("outputs", [32, 80])
def test_results_are_those_of_linear(dtype, bias, rows, outputs):
    plain = nn.Linear(48, outputs, bias=bias).to(dtype)
    packed = PackedLinear.from_linear(copy.deepcopy(plain))
    x = torch.randn(rows, 48).to(dtype)
    allowed = 1e-5 if dtype == torch.float32 else 3e-2
    with torch.no_grad():
        expected = nn.functional.linear(x.double(), plain.weight.double(), plain.bias.double() if bias else None)
        got = packed(x)
    assert got.dtype == dtype and got.shape == (rows, outputs) and got.is_contiguous()
    torch.testing.assert_close(got.double(), expected, atol=allowed, rtol=allowed)


def test_leading_dimensions_and_strides():
    packed = PackedLinear.from_linear(nn.Linear(8, 6))
    x = torch.randn(8, 2, 3).permute(1, 2, 0)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), nn.functional.linear(x, packed.weight, packed.bias))


@torch.no_grad()
def test_changed_weights_are_packed_again():
    packed = PackedLinear.from_linear(nn.Linear(8, 6))
    x = torch.randn(4, 8)
    packed(x)
    packed.load_state_dict(nn.Linear(8, 6).state_dict())
    torch.testing.assert_close(packed(x), nn.functional.linear(x, packed.weight, packed.bias))
    packed.to(torch.bfloat16)
    assert packed(x.bfloat16()).dtype == torch.bfloat16


def test_gradients_flow_and_copies_work():
    packed = PackedLinear.from_linear(nn.Linear(8, 6))
    with torch.no_grad():
        packed(torch.randn(4, 8))
    packed(torch.randn(4, 8)).sum().backward()
    assert packed.weight.grad.abs().sum() > 0
    twin = copy.deepcopy(packed)
    x = torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), packed(x))


def test_pack_linears_keeps_the_state_dict():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.ModuleDict({"head": nn.Linear(8, 2)}))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert pack_linears(model) is model
    assert isinstance(model[0], PackedLinear) and isinstance(model[2]["head"], PackedLinear)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@torch.inference_mode()
@pytest.mark.parametrize("least", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_batch_nor_on_its_padding(dtype, least, monkeypatch):
    monkeypatch.setattr("vistok.ops.linear.least_rows", lambda _: least)
    for inputs, outputs in ((48, 96), (96, 48), (64, 205), (2048, 64)):
        layer = PackedLinear.from_linear(nn.Linear(inputs, outputs, bias=False)).to(dtype)
        x = torch.randn(150, inputs).to(dtype)
        alone = torch.cat([layer(row[None]) for row in x])
        for rows in (2, 3, 4, 7, 16, 64, 150):
            assert torch.equal(layer(x[:rows]), alone[:rows])


def test_the_least_rows_are_measured_once():
    assert least_rows(torch.float32) in (2, 4)
    least_rows(torch.float32)
    assert least_rows.cache_info().hits > 0


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 3, 9])
def test_joint_products_are_those_of_each_layer(rows):
    layers = [pack_linears(nn.Sequential(nn.Linear(48, width, bias=False)))[0] for width in (32, 80, 8)]
    x = torch.randn(rows, 1, 48)
    for part, layer in zip(joint(x, *layers), layers, strict=True):
        assert torch.equal(part, layer(x))
    with torch.no_grad():
        layers[1].weight.mul_(2)
    assert torch.equal(joint(x, *layers)[1], layers[1](x))
    assert len(joint(x, *copy.deepcopy(layers))) == 3


@torch.inference_mode()
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("outputs", [32, 80])
def test_int8_products_are_near_and_do_not_depend_on_the_batch(bias, outputs):
    plain = nn.Linear(96, outputs, bias=bias)
    layer = Int8Linear.from_linear(copy.deepcopy(plain))
    x = torch.randn(17, 96) * torch.logspace(-3, 3, 17)[:, None]  # each row has a scale of its own
    x[4] = 0
    error = (layer(x) - plain(x)).abs() / x.abs().amax(1, keepdim=True).clamp(min=1e-9)
    assert error.max() < 0.05
    alone = torch.cat([layer(row[None]) for row in x])
    for rows in (1, 2, 5, 17):
        assert torch.equal(layer(x[:rows]), alone[:rows])
    other = Int8Linear.from_linear(nn.Linear(96, 8, bias=False))
    if not bias:
        assert all(torch.equal(a, b(x)) for a, b in zip(joint(x, layer, other), (layer, other), strict=True))


@torch.inference_mode()
@pytest.mark.parametrize("inputs", [96, 1000])
def test_int8_sums_are_exact(inputs):
    layer = Int8Linear.from_linear(nn.Linear(inputs, 48, bias=False))
    x = torch.randn(9, inputs)
    x[0] = 1e-30  # the largest numbers that a row can hold, all of one sign
    x[1] = -1e30
    x[2] = 0
    (a, unit_a), (b, unit_b) = (_whole(rows) for rows in (x, layer.weight))
    torch.testing.assert_close(layer(x).double(), a @ b.T * unit_a * unit_b.T, atol=1e-30, rtol=1e-4)


def _whole(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in 8 bits, in float64, and what a step of each is."""
    unit = rows.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (rows / unit).round().double(), unit.double()
