"""LlamaGen over sequences: cached decoding equals the full pass; a shorter draw is the beginning of a longer one."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.samplers import Autoregressive, Noise, SamplingParams

SHAPE = LlamaGenConfig(
    dim=32, n_layer=2, n_head=2, multiple_of=16, vocab_size=20, block_size=6, num_classes=3, layout="sequence"
)


def _model(config: LlamaGenConfig = SHAPE) -> LlamaGen:
    torch.manual_seed(0)
    model = LlamaGen(config).eval()
    torch.nn.init.normal_(model.output.weight)
    return model


@torch.no_grad()
def test_cached_decoding_equals_the_full_pass():
    model, labels = _model(), torch.tensor([0, 2])
    tokens = torch.randint(20, (2, 5), generator=torch.Generator().manual_seed(1))
    expected = model(tokens, labels)
    state = model.new_state(2)
    logits = [model.head(model.prefill(labels, state)[:, -1:])]
    for k in range(5):
        logits.append(model.head(model.decode(tokens[:, k : k + 1], torch.tensor([k]), state)))
        state.cache.advance(1)
    torch.testing.assert_close(torch.cat(logits, 1), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_shorter_draw_is_the_beginning_of_a_longer_one():
    labels, noise = torch.tensor([0, 1, 2]), Noise(4, torch.arange(3))
    whole, _ = Autoregressive().sample(_model(), Condition(labels), SamplingParams(guidance=2.0), noise)
    assert whole.shape == (3, 6)
    for length in (1, 3, 6):
        model = _model()
        model.stop_at(length)
        part, _ = Autoregressive().sample(model, Condition(labels), SamplingParams(guidance=2.0), noise)
        assert torch.equal(part, whole[:, :length])


def test_positions_of_a_sequence_differ_from_those_of_a_grid():
    grid = LlamaGenConfig(dim=32, n_layer=1, n_head=2, multiple_of=16, vocab_size=20, block_size=4)
    sequence = LlamaGenConfig(
        dim=32, n_layer=1, n_head=2, multiple_of=16, vocab_size=20, block_size=4, layout="sequence"
    )
    assert LlamaGen(grid).rope.shape == LlamaGen(sequence).rope.shape
    assert not torch.equal(LlamaGen(grid).rope, LlamaGen(sequence).rope)


def test_layouts_are_checked():
    with pytest.raises(VistokError, match="LlamaGen layout"):
        LlamaGen(LlamaGenConfig(dim=32, n_layer=1, n_head=2, block_size=4, layout="rows"))
    with pytest.raises(VistokError, match="grid of tokens as a whole"):
        LlamaGen(LlamaGenConfig(dim=32, n_layer=1, n_head=2, vocab_size=20, block_size=4)).stop_at(2)
    with pytest.raises(VistokError, match="1 to 6 tokens"):
        _model().stop_at(7)
