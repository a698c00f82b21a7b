"""Token Recycling: its matrix, and the pictures of plain decoding with the same seed in fewer passes."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.tiny import prompt, tiny
from vistok.errors import VistokError
from vistok.models.interface import Condition
from vistok.models.llamagen import LlamaGen, LlamaGenConfig
from vistok.samplers import Autoregressive, Noise, Recycling, SamplingParams, TokenRecycling, generate
from vistok.samplers.targets import causal_lm
from vistok.samplers.targets.support import check_model


def test_the_last_of_equal_tokens_renews_the_matrix():
    drafter = TokenRecycling(((0,), (1,)))
    drafter.adjacency = torch.zeros(5, 2, dtype=torch.int64)
    logits = torch.eye(5)[[0, 1, 2]] + torch.eye(5)[[4, 4, 4]] * 0.5
    drafter.renew(torch.tensor([3, 1, 3]), logits)
    assert drafter.adjacency.tolist() == [[0, 0], [1, 4], [0, 0], [2, 4], [0, 0]]


def test_a_prompt_is_read_in_pieces_of_bounded_size(monkeypatch):
    """Logits of a whole prompt never lie in memory, also not those of a ragged batch of prompts."""
    monkeypatch.setattr(causal_lm, "PIECE", 23 * 5)
    monkeypatch.setattr(causal_lm, "LEAST", 1)
    pieces, widest = [], []

    class Watched(TokenRecycling):
        def read(self, tokens, logits):
            pieces.append((tokens, logits))
            super().read(tokens, logits)

    network = tiny()
    check_model(network, 1)  # its trial is over before anything is counted
    hook = network.lm_head.register_forward_hook(lambda module, inputs, output: widest.append(output.shape[1]))
    mask = torch.tensor([[0] * 9 + [1] * 31, [1] * 40])
    inputs = {"input_ids": prompt(2, 40) * mask, "attention_mask": mask}
    try:
        drafter = Watched(((0,), (1,)))
        generate(network, inputs, drafter, max_new_tokens=1, do_sample=False, pad_token_id=0)
        assert widest[0] == 2  # the last rows of either prompt
    finally:
        hook.remove()
    assert max(len(tokens) for tokens, _ in pieces) == 5
    tokens, logits = (torch.cat(parts) for parts in zip(*pieces, strict=True))
    assert len(tokens) == 71
    position = (mask.cumsum(1) - 1).clamp(min=0)
    whole = network(input_ids=inputs["input_ids"], attention_mask=mask, position_ids=position).logits
    real = torch.cat([whole[row, -n:] for row, n in enumerate((31, 40))])
    assert torch.allclose(logits, real, atol=1e-8)
    for token in set(tokens.tolist()):
        last = (tokens == token).nonzero()[-1, 0]
        assert drafter.adjacency[token].tolist() == real[last].topk(2).indices.tolist()


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
