"""LeMo: layers that leave tokens out, in transformers and PEFT models, under checkpointing, and what they save."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.context.tiny import tiny
from vistok.errors import VistokError
from vistok.ops.segments import segmented_cross_entropy
from vistok.train.involvement import Predicted, Predictor, Received, Share, involve, kept_blocks, saved_bytes

SELECTIONS = {
    "received": lambda: Received(0.3, 8),
    "predicted": lambda: Predicted([Predictor(64, 4, 8) for _ in range(5)], 0.4),
    "share": lambda: Share(0.5, 8),
    "windows": lambda: Share(0.5, 8, window=16),
    "random": lambda: Share(0.5, 8, seed=0),
}


def batch(length: int = 64) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 97, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, :10] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100), "use_cache": False}


@pytest.fixture(scope="module")
def model():
    return tiny().train()


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_layers_run_on_fewer_tokens_and_gradients_flow(name, kind):
    model = tiny(kind).train()
    with involve(model, SELECTIONS[name]()) as told:
        model(**batch()).loss.backward()
    assert told.kept.keys() == {2, 3}
    assert 0 < told.share < 1
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("seed", [None, 0])
def test_every_window_keeps_its_share(seed, model):
    few = Share(0.5, 8, seed, window=32)
    x = torch.randn(2, 100, 64, generator=torch.Generator().manual_seed(2))
    arguments = {"position_embeddings": model.model.rotary_emb(x, torch.arange(100)[None]), "attention_mask": None}
    kept = few(2, model.model.layers[2], x, arguments)
    assert kept.shape == (2, 13) and bool(kept[:, [0, -1]].all())
    assert [part.sum(1).tolist() for part in kept.split(4, 1)] == [[2, 2], [2, 2], [2, 2], [1, 1]]
    with pytest.raises(VistokError, match="window is 8"):
        Share(0.5, 8, window=8)


@pytest.mark.parametrize("name", ["received", "share"])
def test_keeping_all_changes_nothing(name, model):
    select = Received(0.0, 8) if name == "received" else Share(1.0, 8)
    plain = model(**batch()).loss
    with involve(model, select, range(5)) as told:
        assert torch.allclose(model(**batch()).loss, plain, atol=1e-5)
    assert told.share == 1
    assert torch.equal(model(**batch()).loss, plain)


def test_gradient_checkpointing_gives_the_same_gradients():
    one = tiny().train()
    other = copy.deepcopy(one)
    other.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for each in (one, other):
        with involve(each, Received(0.3, 8)):
            each(**batch()).loss.backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-6)


def test_less_is_stored_for_the_backward_pass(model):
    with saved_bytes() as dense:
        model(**batch())
    with involve(model, Share(0.25, 8), range(5)), saved_bytes() as thinned:
        model(**batch())
    assert thinned[0] < dense[0] / 1.5


def test_a_peft_model_is_trained(model):
    peft = pytest.importorskip("peft")
    lora = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    with involve(lora, Share(0.5, 8)) as told:
        lora(**batch()).loss.backward()
    assert told.share < 1


def test_what_it_cannot_do_is_named(model):
    with involve(model, Share(0.5, 8)), pytest.raises(VistokError, match="use_cache=False"):
        model(**batch() | {"use_cache": True})
    with involve(model, Share(0.5, 8)), pytest.raises(VistokError, match="already"), involve(model, Share(0.5, 8)):
        pass
    with pytest.raises(VistokError, match="0 to 4"), involve(model, Share(0.5, 8), [7]):
        pass
    with pytest.raises(VistokError, match="self_attn"), involve(tiny("gpt2"), Share(0.5, 8)):
        pass
    assert not any("forward" in vars(layer) for layer in model.model.layers)


@pytest.mark.parametrize("epsilon", [0.0, 0.2, 0.5, 1.0])
def test_kept_blocks_hold_the_share_with_as_few_as_can_be(epsilon):
    sums = torch.rand(50, 9, dtype=torch.float64).softmax(-1)
    kept = kept_blocks(sums, epsilon)
    assert bool(kept[:, [0, -1]].all())
    held = (sums * kept).sum(-1)
    assert bool((held >= 1 - epsilon - 1e-9).all())
    inner = kept.clone()
    inner[:, [0, -1]] = False
    least = torch.where(inner, sums, torch.inf).amin(-1)
    assert bool((held - least < 1 - epsilon)[inner.any(-1)].all())


@pytest.mark.parametrize("segment", [1, 7, 100])
def test_a_segmented_loss_is_the_whole_one(segment):
    hidden = torch.randn(2, 19, 8, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(8, 13, dtype=torch.float64)
    targets = torch.randint(0, 13, (2, 19))
    targets[0, :5] = -100
    grads = []
    for loss in (
        segmented_cross_entropy(hidden, head, targets, segment),
        F.cross_entropy(head(hidden).flatten(0, 1).float(), targets.flatten(), ignore_index=-100),
    ):
        grads.append((float(loss), *torch.autograd.grad(loss, [hidden, head.weight])))
    assert grads[0][0] == pytest.approx(grads[1][0], abs=1e-6)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(grads[0][1:], grads[1][1:], strict=True))
