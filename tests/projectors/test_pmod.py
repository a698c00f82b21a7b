"""p-MoD on transformers models: what an oracle without hooks computes, per-layer caches, published keys, sentences."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.models.huggingface import given_cache
from vistok.projectors import PMod, compress
from vistok.projectors.apply.compress import active
from vistok.projectors.methods.pmod import RouterNorm, progressive_ratios, split_checkpoint, target_ratios

NEW = {"max_new_tokens": 5, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
SHARES = {
    "falling": [None, 0.75, 0.25, 0.15],
    "interleaved": [None, 0.4, None, 0.4],
    "none": [None, None, 0.0, 1.0],
    "one": [None, None, 0.4, None],
}


def routers(shares, norm="tanh_0.2_1", seed=1) -> PMod:
    method = PMod(48, shares, norm)
    generator = torch.Generator().manual_seed(seed)
    for parameter in method.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return method.eval()


@torch.no_grad()
def oracle(model, method, ids, pixels):
    """Logits of one prompt, layer by layer, from the paper's equations."""
    decoder = model.model.language_model
    hidden = model.get_input_embeddings()(ids)
    visual = ids == tiny.IMAGE
    hidden[visual] = torch.cat(list(model.model.get_image_features(pixel_values=pixels).pooler_output))
    cos, sin = decoder.rotary_emb(hidden[None], torch.arange(len(ids))[None])
    for index, layer in enumerate(decoder.layers):
        share = method.ratios[index]
        kept, weights = torch.ones_like(visual), torch.ones(len(ids))
        if share is not None:
            logits = method.router(index)(hidden)
            weights = torch.where(visual, method.norm(logits[None], visual[None])[0], 1.0)
            best = logits.masked_fill(~visual, -torch.inf).topk(int(share * int(visual.sum()))).indices
            kept = (~visual).scatter(0, best, True)
        x, rotary = hidden[kept][None], (cos[:, kept], sin[:, kept])
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf).triu(1)[None, None]
        x = x + layer.self_attn(layer.input_layernorm(x), position_embeddings=rotary, attention_mask=mask)[0]
        x = x + layer.mlp(layer.post_attention_layernorm(x)) * weights[kept][None, :, None]
        hidden = hidden * weights[:, None]
        hidden[kept] = x[0]
    return model.lm_head(decoder.norm(hidden))


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize(
    "shares, norm",
    # Small weights leave tokens that later routers cannot tell apart: one mixed layer for norms that give such.
    [(name, "tanh_0.2_1") for name in SHARES] + [("one", norm) for norm in ("sigmoid_1_0", "softmax_1_0", "none")],
)
@torch.no_grad()
def test_logits_are_those_of_the_equations(shares, norm, left):
    model, inputs, method = tiny.llava(), tiny.llava_inputs(left=left), routers(SHARES[shares], norm)
    with compress(model, method) as compression:
        logits = model(**inputs).logits
        lengths = compression.last.lengths
    start = 0
    for row in range(2):
        there = inputs["attention_mask"][row].bool()
        ids, pictures = inputs["input_ids"][row, there], row + 1
        expected = oracle(model, method, ids, inputs["pixel_values"][start : start + pictures])
        torch.testing.assert_close(logits[row, there], expected, atol=2e-5, rtol=1e-4)
        whole = pictures * tiny.GRID**2
        text = len(ids) - whole
        assert lengths[row] == [text + (whole if s is None else int(s * whole)) for s in method.ratios]
        start += pictures


@pytest.mark.parametrize("shares", ["falling", "interleaved", "one"])
def test_rows_of_a_batch_do_not_mix_and_caches_are_as_long_as_what_layers_saw(shares):
    model, inputs, method = tiny.llava(), tiny.llava_inputs(), routers(SHARES[shares])
    start = 0
    with torch.no_grad(), compress(model, method) as compression:
        batch = model.generate(**inputs, **NEW)
        widths = [max(row[layer] for row in compression.last.lengths) for layer in range(4)]
        cache = given_cache(batch)
        assert [cache.get_seq_length(layer) - 4 for layer in range(1, 4)] == widths[1:]
        for row in range(2):
            there = inputs["attention_mask"][row].bool()
            ids = inputs["input_ids"][row, there]
            pixels = inputs["pixel_values"][start : start + row + 1]
            start += row + 1
            alone = model.generate(input_ids=ids[None], pixel_values=pixels, **NEW)
            mine = torch.stack(batch.logits)[:, row]
            torch.testing.assert_close(mine, torch.stack(alone.logits)[:, 0], atol=3e-5, rtol=1e-4)
        beams = model.generate(**inputs, max_new_tokens=4, num_beams=2)
    assert beams.shape[1] == inputs["input_ids"].shape[1] + 4


def test_new_routers_change_nothing_but_what_is_skipped():
    model, inputs = tiny.llava(), tiny.llava_inputs()
    with torch.no_grad():
        plain = model(**inputs).logits
        with compress(model, PMod(48, [None, 1.0, 1.0, 1.0])):
            torch.testing.assert_close(model(**inputs).logits, plain, atol=1e-5, rtol=1e-5)
        assert torch.equal(model(**inputs).logits, plain)


def test_a_loss_reaches_the_routers():
    model, inputs = tiny.llava(), tiny.llava_inputs()
    method = routers(SHARES["falling"])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    with compress(model, method):
        model(**inputs, labels=labels).loss.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())
    assert all(bool((method.router(layer).router.weight.grad != 0).any()) for layer in (1, 2))


def gradients(model, method, batches, **checkpoints):
    """Of a loss over several forwards, all of which come before its backward."""
    model, method = copy.deepcopy(model).train().requires_grad_(), copy.deepcopy(method)
    if checkpoints:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpoints)
    with compress(model, method):
        sum(model(**batch, labels=batch["input_ids"], use_cache=False).loss for batch in batches).backward()
    found = {**dict(model.named_parameters()), **dict(method.named_parameters())}
    return {name: parameter.grad for name, parameter in found.items() if parameter.grad is not None}


@pytest.mark.parametrize("shares", ["falling", "interleaved"])
def test_checkpoints_give_the_same_gradients(shares):
    batches = [tiny.llava_inputs(), tiny.llava_inputs(pictures=(2, 1), seed=1)]
    plain = gradients(tiny.llava(), routers(SHARES[shares]), batches)
    again = gradients(tiny.llava(), routers(SHARES[shares]), batches, use_reentrant=False)
    assert any("router" in name for name in plain)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-4)


def test_reentrant_checkpoints_are_refused():
    with pytest.raises(VistokError, match="'use_reentrant': False"):
        gradients(tiny.llava(), routers(SHARES["falling"]), [tiny.llava_inputs()], use_reentrant=True)


@pytest.mark.parametrize(
    "family, shares, culprit",
    [(name, SHARES["falling"], "full attention") for name in ("gemma3", "aya_vision", "cohere2_vision", "lfm2_vl")]
    + [("lfm2_vl", [None, 0.5, None, 0.5], "MLP")],  # only layers of full attention
)
def test_layers_that_cannot_be_shortened_are_refused_and_leave_no_trace(family, shares, culprit):
    model = getattr(tiny, family)()
    with pytest.raises(VistokError, match=culprit):
        compress(model, PMod(48, shares))
    assert active(model) is None
    assert "generate" not in vars(model)


@pytest.mark.parametrize("device, dtype", [("cpu", torch.float64), ("meta", torch.float32)])
def test_routers_of_another_precision_or_place_are_told(device, dtype):
    method = routers(SHARES["falling"]).to(device, dtype)
    model = tiny.llava()
    with compress(model, method), pytest.raises(VistokError, match=r"\.to\(model\.device, model\.dtype\)"):
        model(**tiny.llava_inputs())


def test_autocast_settles_the_precision_of_routers():
    model = tiny.llava().bfloat16()
    with compress(model, routers(SHARES["falling"])), torch.autocast("cpu", torch.bfloat16):
        assert bool(model(**tiny.llava_inputs()).logits.isfinite().all())


def test_published_schedules():
    def mean(ratios):
        return sum(1 if r is None else r for r in ratios) / len(ratios)

    ratios = progressive_ratios(32, 0.5, 0.85, 0.15)
    assert [r is None for r in ratios] == [True] * 8 + [False] * 24
    assert mean(ratios) == pytest.approx(0.5375, abs=1e-3)
    assert target_ratios("shiftedcos_decay_0.85_0.15", 0.5, 32) == ratios
    assert mean(progressive_ratios(4, 0.5, 0.85, 0.15)) == pytest.approx(0.5375)
    assert [r is not None for r in target_ratios("deep_all", 0.3, 6)] == [False, False, True, True, True, False]
    assert [r is not None for r in target_ratios("interleave", 0.3, 4)] == [False, True, False, True]
    zero, visual = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    for name, weight in (("tanh_0.2_1", 1.0), ("none", 1.0), ("sigmoid", 1.5), ("softmax_2_-1", 0.0)):
        assert RouterNorm(name)(zero, visual)[0, 0].item() == weight


def published(folder, model, method):
    """A checkpoint in the published layout: mixed layers wrap the language model's."""
    state = {f"model.{k}": v for k, v in model.model.language_model.state_dict().items()}
    mixed = tuple(f"model.layers.{layer}." for layer in method.mixed)
    state = {
        key.replace(prefix, f"{prefix}decoder_layer.")
        if (prefix := next(filter(key.startswith, mixed), ""))
        else key: v
        for key, v in state.items()
    }
    state |= method.state_dict()
    save_file({key: value.contiguous() for key, value in state.items()}, folder / "model.safetensors")
    config = {
        "model_type": "pmod_llava_llama",
        "hidden_size": 48,
        "num_hidden_layers": 4,
        "mod_target_layers": "shiftedcos_decay_0.85_0.15",
        "mod_router_factor": 0.5,
        "mod_weight_norm": "tanh_0.2_1",
        "mod_bias_enabled": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return config, state


def test_published_keys_load_strictly(tmp_path):
    model = tiny.llava()
    method = routers(target_ratios("shiftedcos_decay_0.85_0.15", 0.5, 4))
    config, state = published(tmp_path, model, method)
    again = PMod.from_checkpoint(tmp_path)
    assert again.ratios == method.ratios
    assert all(
        torch.equal(a, b) for a, b in zip(again.state_dict().values(), method.state_dict().values(), strict=True)
    )
    assert {key.removeprefix("model.") for key in split_checkpoint(state)[1]} == set(
        model.model.language_model.state_dict()
    )
    method.save_pretrained(tmp_path)
    assert PMod.from_pretrained(tmp_path).ratios == method.ratios
    (tmp_path / "config.json").write_text(json.dumps(config | {"mod_target_layers": "deep_all_include_last"}))
    with pytest.raises(VistokError, match=r"layers\.1"):
        PMod.from_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(VistokError, match="mod_target_layers"):
        PMod.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "make, culprit",
    [
        (lambda: PMod(48, [None, None]), "at least one"),
        (lambda: PMod(48, [None, 1.5]), "1.5"),
        (lambda: PMod(48, [0.5], norm="tanh_0.2"), "tanh_0.2"),
        (lambda: target_ratios("deepest", 0.5, 4), "deepest"),
        (lambda: target_ratios("shiftedcos_decay_a_b", 0.5, 4), "shiftedcos_decay_a_b"),
        (lambda: progressive_ratios(4, 0.5, 0.1, 0.5), "0.5"),
        (lambda: compress(tiny.llava(), PMod(48, [None, 0.5])), "4"),
        (lambda: compress(tiny.llava(), PMod(48, [0.5, None, None, None])), "layer 0"),
    ],
)
def test_mistakes_get_one_sentence(make, culprit):
    with pytest.raises(VistokError, match=culprit):
        make()
