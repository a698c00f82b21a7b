"""LlamaGen: cached decoding equals the full pass, the collapsed prefix is exact, checkpoints load strictly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.models.llamagen import LlamaGen, LlamaGenConfig

TINY = {"dim": 32, "n_layer": 2, "n_head": 4, "multiple_of": 16, "vocab_size": 50, "block_size": 16, "caption_dim": 12}


def tiny(kind: str = "t2i", **overrides) -> LlamaGen:
    torch.manual_seed(0)
    prefix = {"cls_token_num": 6} if kind == "t2i" else {"num_classes": 10}
    model = LlamaGen(LlamaGenConfig(**{**TINY, "model_type": kind, **prefix, **overrides})).eval()
    torch.nn.init.normal_(model.output.weight, std=0.2)
    return model


def condition_of(model: LlamaGen, batch: int):
    if model.config.model_type == "c2i":
        return torch.arange(batch) % model.config.num_classes, None
    features = torch.randn(batch, model.config.cls_token_num, model.config.caption_dim)
    mask = torch.arange(model.config.cls_token_num) >= torch.randint(0, 5, (batch, 1))
    return features * mask[..., None], mask


@torch.no_grad()
@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["c2i", "t2i"]),
    kv_heads=st.sampled_from([None, 2, 1]),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 1000),
)
def test_cached_chunks_equal_the_full_pass(kind, kv_heads, sizes, seed):
    model = tiny(kind, n_kv_head=kv_heads)
    torch.manual_seed(seed)
    condition, mask = condition_of(model, 3)
    total = min(15, sum(sizes))
    tokens = torch.randint(50, (3, total))
    full = model(tokens, condition, mask)
    state = model.new_state(3)
    out, done = [model.head(model.prefill(condition, state, mask)[:, -1:])], 0
    for size in sizes:
        size = min(size, total - done)
        if size == 0:
            break
        out.append(model.head(model.decode(tokens[:, done : done + size], torch.arange(done, done + size), state)))
        state.cache.advance(size)
        done += size
    torch.testing.assert_close(torch.cat(out, 1), full, atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_tree_sees_its_ancestors_only():
    model = tiny("c2i")
    condition, _ = condition_of(model, 2)
    committed, siblings = torch.tensor([[3, 4], [5, 6]]), torch.tensor([[7, 8, 9], [1, 2, 3]])
    state = model.new_state(2, extra=8)
    model.prefill(condition, state)
    model.decode(committed, torch.arange(2), state)
    state.cache.advance(2)
    # Node 0 is the root; nodes 1 and 2 are both its children.
    ancestors = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool().expand(2, -1, -1)
    positions = torch.tensor([2, 3, 3])
    logits = model.head(model.decode(siblings, positions, state, ancestors))
    for child in (1, 2):
        path = torch.cat([committed, siblings[:, [0, child]]], 1)
        torch.testing.assert_close(logits[:, child], model(path, condition)[:, -1], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_ragged_sequences_equal_single_ones():
    model = tiny("t2i")
    condition, mask = condition_of(model, 2)
    tokens = torch.randint(50, (2, 6))
    state = model.new_state(2, extra=4)
    model.prefill(condition, state, mask)
    model.decode(tokens[:, :3], torch.arange(3), state)
    state.cache.advance(torch.tensor([3, 1]))  # the second sequence keeps one token only
    fed = torch.stack([tokens[0, 3:5], tokens[1, 1:3]])
    positions = torch.tensor([[3, 4], [1, 2]])
    logits = model.head(model.decode(fed, positions, state))
    full = model(tokens[:, :5], condition, mask)
    torch.testing.assert_close(logits[0], full[0, 4:6], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(logits[1], full[1, 2:4], atol=2e-5, rtol=1e-4)


def test_conditions_are_dropped_at_the_stated_rate():
    model = tiny("c2i", class_dropout_prob=0.3).train()
    torch.manual_seed(1)
    condition = model.drop_condition(torch.zeros(4000, dtype=torch.int64), model.draw_dropped(4000))
    dropped = (condition == model.config.num_classes).float().mean()
    assert abs(dropped - 0.3) < 0.03


def test_safetensors_round_trip(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    again = LlamaGen.from_pretrained(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("wrapper", [None, "model", "module", "state_dict", "_orig_mod"])
def test_published_wrappers_and_leftovers_load(tmp_path, monkeypatch, wrapper):
    model = tiny("c2i", num_classes=1000)
    monkeypatch.setitem(LlamaGen.presets, "tiny", model.config)
    state = dict(model.state_dict())
    state["freqs_cis"] = torch.zeros(3)
    state["layers.0.attention.kv_cache.k_cache"] = torch.zeros(3)
    if wrapper == "_orig_mod":
        state = {f"_orig_mod.{key}": value for key, value in state.items()}
    torch.save(state if wrapper in (None, "_orig_mod") else {wrapper: state, "steps": 5}, tmp_path / "x.pt")
    again = LlamaGen.from_pretrained(tmp_path / "x.pt", preset="tiny")
    assert torch.equal(again.output.weight, model.output.weight)


def test_averaged_weights_are_taken_when_asked_for(tmp_path, monkeypatch):
    model = tiny("c2i")
    monkeypatch.setitem(LlamaGen.presets, "tiny", model.config)
    averaged = {key: value * 2 for key, value in model.state_dict().items()}
    torch.save({"model": model.state_dict(), "ema": averaged}, tmp_path / "x.pt")
    plain = LlamaGen.from_pretrained(tmp_path / "x.pt", preset="tiny")
    ema = LlamaGen.from_pretrained(tmp_path / "x.pt", preset="tiny", prefer_ema=True)
    assert torch.equal(ema.output.weight, 2 * plain.output.weight)


def test_wrong_checkpoints_are_named(tmp_path, monkeypatch):
    small, large = tiny("c2i"), tiny("c2i", dim=48)
    monkeypatch.setitem(LlamaGen.presets, "small", small.config)
    monkeypatch.setitem(LlamaGen.presets, "large", large.config)
    torch.save(large.state_dict(), tmp_path / "x.pt")
    with pytest.raises(VistokError, match="is a large"):
        LlamaGen.from_pretrained(tmp_path / "x.pt", preset="small")
    state = small.state_dict()
    state.pop("norm.weight")
    torch.save(state, tmp_path / "y.pt")
    with pytest.raises(VistokError, match=r"lacks norm\.weight"):
        LlamaGen.from_pretrained(tmp_path / "y.pt", preset="small")
    with pytest.raises(VistokError, match="give a preset"):
        LlamaGen.from_pretrained(tmp_path / "y.pt")


@pytest.mark.parametrize("entries", [{"model_type": "t3i"}, {"block_size": 17}])
def test_impossible_shapes_are_refused(entries):
    with pytest.raises(VistokError):
        LlamaGen(LlamaGenConfig(**{**TINY, **entries}))


@torch.no_grad()
def test_compiled_blocks_share_their_graphs():
    model = tiny("c2i")
    condition, _ = condition_of(model, 2)
    tokens = torch.randint(50, (2, 6))
    graphs = []

    def backend(graph, _inputs):
        graphs.append(graph)
        return graph

    def decoded():
        state = model.new_state(2)
        out = [model.prefill(condition, state)[:, -1:]]
        for k in range(6):
            out.append(model.decode(tokens[:, k : k + 1], torch.tensor([k]), state))
            state.cache.advance(1)
        return torch.cat(out, 1)

    plain = decoded()
    model.compile_blocks(backend=backend)
    torch.testing.assert_close(decoded(), plain)
    # One token after another over a growing cache compiles nothing anew: prefix and decode, projection and residual.
    assert 0 < len(graphs) <= 4
