"""Token Recycling on the image target: the pictures of plain decoding with the same seed, in fewer passes."""

from __future__ import annotations

import pytest
import torch

from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.samplers import Autoregressive, Noise, Recycling, SamplingParams


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaGenConfig(
        dim=32, n_layer=2, n_head=2, multiple_of=8, vocab_size=24, block_size=25,
        model_type="t2i", cls_token_num=4, caption_dim=6,
    )  # fmt: skip
    model = LlamaGen(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


@pytest.mark.parametrize("law", [SamplingParams(), SamplingParams(guidance=2.0, top_k=8), SamplingParams(greedy=True)])
def test_the_pictures_are_those_of_plain_decoding(model, law):
    torch.manual_seed(2)
    condition, mask = torch.randn(3, 4, 6, dtype=torch.float64), torch.tensor([[1] * 4, [0, 1, 1, 1], [0, 0, 1, 1]])
    noise = Noise(5, torch.arange(3))
    plain, _ = Autoregressive().sample(model, Condition(condition, mask), law, noise)
    codes, stats = Recycling().sample(model, Condition(condition, mask), law, noise)
    assert torch.equal(codes, plain)
    assert int(stats.forwards.min()) < 24
    alone, _ = Recycling().sample(model, Condition(condition[1:2], mask[1:2]), law, Noise(5, torch.tensor([1])))
    assert torch.equal(alone[0], plain[1])


def test_a_tree_without_a_parent_is_refused():
    with pytest.raises(VistokError, match="parent"):
        Recycling(((0, 0),))
