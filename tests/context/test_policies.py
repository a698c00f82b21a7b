"""What single policies promise: choices, budgets, published names, training."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from tests.context.tiny import ragged, tiny
from vistok import context
from vistok.context.interface import Step
from vistok.context.lococo import MemorySaver, chunk_losses, load_savers, saver_state
from vistok.errors import VistokError
from vistok.ops import KVCache, attention
from vistok.ops.selection import gather_rows, gathered_attention, vote_rows


def rows(batch: int = 2, heads: int = 4, kv_heads: int = 2, new: int = 1, keys: int = 40):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, heads, new, 16, generator=generator)
    k, v = torch.randn(2, batch, kv_heads, keys, 16, generator=generator)
    return q, k, v


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 3])
def test_gathered_attention_is_attention_with_the_other_rows_hidden(heads, new):
    q, k, v = rows(new=new)
    index = torch.stack([torch.randperm(40)[:9] for _ in range(2 * heads)]).view(2, heads, 9)
    seen = torch.rand(2, heads, new, 9) > 0.3
    mask = torch.zeros(2, heads, new, 40, dtype=torch.bool).scatter(3, index[:, :, None].expand_as(seen), seen)
    found = gathered_attention(q, k, v, index, seen)
    assert torch.allclose(found, attention(q, k, v, mask=mask.repeat_interleave(4 // heads, 1)), atol=1e-5)


def test_rows_are_gathered_from_a_view_of_a_larger_cache():
    cache = torch.randn(2, 3, 50, 16)
    view, index = cache[:, :, :20], torch.randint(0, 20, (2, 3, 7))
    wanted = view.gather(2, index[..., None].expand(-1, -1, -1, 16))
    assert torch.equal(gather_rows(view, index), wanted)
    assert torch.equal(gather_rows(cache.transpose(1, 2).contiguous().transpose(1, 2)[:, :, :20], index), wanted)


def test_votes_are_shares_of_the_candidates():
    q, k, _ = rows()
    seen = torch.arange(40) < torch.tensor([[40], [11]])
    votes = vote_rows(q[:, :, 0], k, seen)
    assert torch.allclose(votes.sum(1), torch.tensor(4.0))
    assert float(votes[1, 11:].abs().max()) == 0
    assert torch.allclose(votes[1, :11], vote_rows(q[1:, :, 0], k[1:, :, :11])[0])


@pytest.mark.parametrize("heads", ["kv", "query"])
def test_tidal_reads_what_its_layers_chose(heads):
    policy, cache = context.TidalDecode(5, 0, 2, heads=heads), KVCache(4, 2, 60, 2, 16)
    q, k, v = rows(keys=40)
    policy.attend(Step(cache, 40), 0, q.expand(-1, -1, 40, -1), k, v, None)
    for layer in range(4):
        cache.keys[layer], cache.values[layer] = cache.keys[0], cache.values[0]
    step = Step(cache, 1)
    for layer in range(4):
        cache.restore(step.start)
        policy.attend(step, layer, q, k[:, :, :1], v[:, :, :1], None)
        assert policy.chosen.shape == (2, 2 if heads == "kv" else 4, 5)
    every = torch.einsum("bhgd,bhsd->bhgs", q[:, :, 0].unflatten(1, (2, 2)), cache.keys[3, :, :, :41])
    best = every.amax(2) if heads == "kv" else every.flatten(1, 2)
    assert torch.equal(policy.chosen.sort(-1).values, best.topk(5).indices.sort(-1).values)


def test_the_needle_that_full_attention_finds_is_found_sparsely():
    """One key that a query points at, far from both ends, under every policy that reads by choice."""
    q, k, v = rows(batch=1, keys=400)
    k = k * 0.1
    k[:, :, 150] = q[:, :, 0].unflatten(1, (2, 2)).mean(2) * 4
    cache = KVCache(2, 1, 500, 2, 16)
    policy = context.TidalDecode(25, 0)
    policy.correction = 5
    policy.attend(Step(cache, 400), 0, q.expand(-1, -1, 400, -1), k, v, None)
    cache.keys[1], cache.values[1] = cache.keys[0], cache.values[0]
    step = Step(cache, 1)
    for layer in range(2):
        cache.restore(step.start)
        out = policy.attend(step, layer, q, k[:, :, :1], v[:, :, :1], None)
    assert bool((policy.chosen == 150).any(-1).all())
    full = attention(q, cache.keys[1, :, :, :401], cache.values[1, :, :, :401])
    assert torch.nn.functional.cosine_similarity(out.flatten(), full.flatten(), 0) > 0.9


def test_released_pairing_of_heads_is_another_one():
    q, k, _ = rows(kv_heads=2)
    assert not torch.allclose(vote_rows(q[:, :, 0], k), vote_rows(q[:, :, 0], k, modulo=True))
    order = torch.tensor([0, 2, 1, 3])  # h % 2 pairs these as h // 2 pairs 0, 1, 2, 3
    assert torch.allclose(vote_rows(q[:, order, 0], k), vote_rows(q[:, :, 0], k, modulo=True))


@pytest.mark.parametrize(
    ("policy", "most"),
    [
        (context.StreamingLLM(2, 8, chunk=8), 10),
        (context.HeavyHitters(8, chunk=8), 8 + 16 + 8),
        (context.LoCoCo(mixing=context.Mixing(8), chunk=8), 8 + 16 + 8),
        (context.SnapKV(12, 4), 12 + 9),
        (context.CoreContext(4, 8), 70 // 4 + 8 + 4),
    ],
)
def test_memory_is_bounded(policy, most):
    model = tiny()
    with context.apply(model, policy) as at_work:
        model.generate(**ragged((60, 31)), max_new_tokens=10, do_sample=False)
    assert max(at_work.last.kept) <= most


def test_streaming_sees_sinks_and_the_window_alone():
    model, inputs = tiny(layers=1), ragged((50,))["input_ids"]
    other = inputs.clone()
    other[:, 2:40] = 5
    with context.apply(model, context.StreamingLLM(2, 8, chunk=8)):
        a, b = (model(input_ids=ids).logits[:, -1] for ids in (inputs, other))
        assert torch.allclose(a, b, atol=1e-5)
    assert not torch.allclose(model(input_ids=inputs).logits[:, -1], model(input_ids=other).logits[:, -1], atol=1e-3)


def test_lococo_weights_have_their_published_names_and_load_strictly(tmp_path):
    model, policy = tiny(), context.LoCoCo(mixing=context.Mixing(8, layers=2, kernel=5))
    context.apply(model, policy).remove()
    state = saver_state(policy.savers)
    assert "model.layers.4.self_attn.memory_saver.layers.2.weight" in state
    assert state["model.layers.0.self_attn.memory_saver.normalizer"].shape == (1,)
    file = tmp_path / "lococo.safetensors"
    save_file({name: tensor.clone() for name, tensor in state.items()}, file)
    again = context.LoCoCo(weights=file, mixing=policy.mixing)
    context.apply(model, again).remove()
    assert all(torch.equal(a, b) for a, b in zip(state.values(), saver_state(again.savers).values(), strict=True))
    name = next(iter(state))
    with pytest.raises(VistokError, match="lack"):
        load_savers(again.savers, {key: value for key, value in state.items() if key != name})
    with pytest.raises(VistokError, match="not wanted"):
        load_savers(again.savers, state | {"x.memory_saver.y": state[name]})
    with pytest.raises(VistokError, match="Mixing"):
        load_savers(again.savers, state | {name: torch.zeros(1, 2, 3)})
    with pytest.raises(VistokError, match=f"{tmp_path.name}.*recipe"):
        context.LoCoCo(weights=tmp_path)  # a folder without the shape


def test_lococo_without_its_share_drops_all_but_heavy_hitters():
    inputs, found = ragged((70,))["input_ids"], []
    for policy in (
        context.LoCoCo(mixing=context.Mixing(8, local=2, start=0.0), chunk=8),
        context.HeavyHitters(8, 2, 8),
    ):
        model = tiny()
        with context.apply(model, policy), torch.no_grad():
            found.append(model(input_ids=inputs, use_cache=True).logits)
    assert torch.allclose(*found, atol=1e-4)


def test_lococo_begins_with_a_chance_row_or_near_the_mean_of_the_rows():
    rows, received = torch.randn(2, 1, 2, 200, 64), torch.rand(1, 2, 200)
    highest = []
    for spread in (1.0, 0.005):
        saver = MemorySaver(context.Mixing(32, activation=None, start=1.0, spread=spread), 64)
        shares = []
        saver.layers.register_forward_hook(lambda _, __, out, to=shares: to.append(out.detach().softmax(-1)))
        saver(*rows, received)
        highest.append(float(shares[0].amax(-1).mean()))
    assert highest[0] > 0.8 and highest[1] < 0.05


def test_weights_of_tokens_count_in_the_losses_of_chunks():
    model, ids = tiny(layers=2).eval(), ragged((40,))["input_ids"]
    weights = torch.zeros(ids.shape).index_fill(1, torch.tensor([5, 37]), 3.0)
    with context.apply(model, context.Full()), torch.no_grad():
        losses = list(chunk_losses(model, ids, 39, weights))
        logits = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
    wanted = [-logits[place - 1, ids[0, place]] for place in (5, 37)]
    assert float(losses[0]) == pytest.approx(float(sum(wanted) / 2), abs=1e-5)


def test_lococo_learns_chunk_by_chunk():
    model = tiny(layers=2).train().requires_grad_(False)
    ids = ragged((48,))["input_ids"].repeat(1, 2)
    policy = context.LoCoCo(mixing=context.Mixing(8), chunk=16)
    with context.apply(model, policy):
        optimizer = torch.optim.AdamW(policy.savers.parameters(), lr=0.05)
        sums = []
        for _ in range(8):
            total = 0.0
            for loss in chunk_losses(model, ids, 16):
                total += float(loss.detach())
                if not loss.requires_grad:  # nothing was mixed for this chunk
                    continue
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            sums.append(total)
    assert all(p.grad is not None for p in policy.savers.parameters())
    assert sums[-1] < sums[0]
