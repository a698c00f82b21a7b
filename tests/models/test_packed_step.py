"""The short way through a decode step: what the general way computes, for every shape of model that it takes."""

import pytest
import torch

from vistok.models import packed_step
from vistok.models.heads.eagle import EagleConfig, EagleNetwork
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.ops import pack_linears

SHAPES = {
    "class": {},
    "text": {"model_type": "t2i", "cls_token_num": 5, "caption_dim": 12},
    "shared keys": {"n_kv_head": 2},
    "sequence": {"layout": "sequence"},
}


@pytest.fixture
def build():
    def make(**shape) -> LlamaGen:
        torch.manual_seed(0)
        small = {"dim": 64, "n_layer": 3, "n_head": 4, "vocab_size": 50, "block_size": 16, "num_classes": 10}
        model = LlamaGen(LlamaGenConfig(**small | shape)).eval()
        torch.nn.init.normal_(model.output.weight, std=0.1)
        return pack_linears(model)

    return make


def conditions(model: LlamaGen, batch: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    if model.config.model_type == "c2i":
        return torch.arange(batch), None
    values = torch.randn(batch, 5, 12).to(model.output.weight.dtype)
    return values, torch.arange(5) < torch.arange(1, batch + 1)[:, None]


def states(model: LlamaGen, batch: int, added: dict) -> torch.Tensor:
    """Features of all positions of a fixed picture, token by token."""
    torch.manual_seed(1)
    state = model.new_state(batch)
    state.added = added
    values, mask = conditions(model, batch)
    out = [model.prefill(values, state, mask)[:, -1:]]
    for position, token in enumerate(torch.randint(0, 50, (15, batch, 1))):
        out.append(model.decode(token, torch.full((batch, 1), position), state))
        state.cache.advance(1)
    return torch.cat(out, 1)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch", [1, 2, 4, 5])
def test_the_bits_are_those_of_the_general_way(build, shape, batch, monkeypatch):
    model = build(**SHAPES[shape])
    added = {1: torch.randn(batch, 16, 64)}
    short = states(model, batch, added)
    monkeypatch.setattr(packed_step, "applies", lambda _: False)
    assert torch.equal(short, states(model, batch, added))


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
def test_in_bfloat16_it_is_as_near_to_float32(build, shape, monkeypatch):
    model = build(**SHAPES[shape])
    exact = states(model, 3, {})
    model = model.bfloat16()
    short = states(model, 3, {}).float()
    assert short.dtype == torch.float32 and (short - exact).abs().max() < 0.1
    monkeypatch.setattr(packed_step, "applies", lambda _: False)
    general = states(model, 3, {}).float()
    assert (short - exact).square().mean() < 1.2 * (general - exact).square().mean()


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lengths", [[1, 1, 1], [4, 4, 4], [4, 1, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tree_behind_sequences_of_any_lengths_agrees(build, shape, lengths, dtype, monkeypatch):
    model = build(**SHAPES[shape]).to(dtype)
    seen = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]).bool().expand(3, -1, -1)
    decided = torch.tensor(lengths)
    positions = decided[:, None] - 1 + torch.tensor([0, 1, 1, 2])
    values, mask = conditions(model, 3)

    def features() -> torch.Tensor:
        torch.manual_seed(1)
        state = model.new_state(3, extra=4)
        model.prefill(values, state, mask)
        model.decode(torch.randint(0, 50, (3, 3)), torch.arange(3), state)
        state.cache.advance(decided - 1)
        return model.decode(torch.randint(0, 50, (3, 4)), positions, state, seen)

    short = features()
    monkeypatch.setattr(packed_step, "applies", lambda _: False)
    general = features()
    if dtype == torch.float32:
        assert torch.equal(short, general)
    else:
        torch.testing.assert_close(short.float(), general.float(), atol=0.1, rtol=0.1)


@torch.inference_mode()
@pytest.mark.parametrize("shared", [0, 2], ids=["own keys", "shared keys"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[3], [3, 3], [3, 1, 2, 2]])
def test_a_draft_network_has_the_same_bits(shared, dtype, lengths, monkeypatch):
    torch.manual_seed(0)
    rows = len(lengths)
    network = EagleNetwork(EagleConfig(50, 64, 96, 4, shared, grid=4, cls_token_num=3)).eval().to(dtype)
    pack_linears(network)
    features, tokens = torch.randn(rows, 9, 64).to(dtype), torch.randint(0, 50, (rows, 9))
    seen = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]]).bool().expand(rows, -1, -1)
    slots = torch.tensor(lengths)[:, None] + torch.tensor([0, 0, 1])

    def predicted() -> torch.Tensor:
        cache = network.new_cache(rows, 12)
        first = network(features[:, :3], tokens[:, :3], cache)
        cache.advance(torch.tensor(lengths))
        second = network(features[:, 3:6], tokens[:, 3:6], cache, slots, seen)
        return torch.cat([first, second], 1)

    short = predicted()
    assert short.dtype == dtype
    monkeypatch.setattr(packed_step, "applies", lambda _: False)
    if dtype == torch.float32:
        assert torch.equal(short, predicted())
    else:
        torch.testing.assert_close(short, predicted(), rtol=0.05, atol=0.05)


def test_it_is_taken_for_packed_models_in_inference_alone(build):
    model = build()
    assert not packed_step.applies(model.output)
    with torch.no_grad():
        assert packed_step.applies(model.output)
        assert not packed_step.applies(model.train().output)
        assert not packed_step.applies(LlamaGen(model.config).eval().output)
