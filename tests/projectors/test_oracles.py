"""Compression beside slower ways of saying the same: eager attention weights, masked tokens, positions by hand."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import get_vision_window_index

from tests.projectors import tiny
from vistok.errors import VistokError
from vistok.models.families import attention as attention_module
from vistok.models.families import family_of
from vistok.models.families.capture import attention_layers, captured_attention
from vistok.projectors import (
    DivPrune,
    FastV,
    GlobalCom2,
    Needs,
    PruMerge,
    TokenPacker,
    ToMe,
    Uniform,
    VisionZip,
    VtcCls,
    compress,
)

NEW = {"max_new_tokens": 5, "do_sample": False}


@pytest.mark.parametrize("name", ["llava", "internvl"])
@torch.no_grad()
def test_cls_rows_are_those_of_eager_attention(name):
    """Also where the tower runs SDPA, and normalises queries and keys before the heads part (InternVL)."""
    pixels = tiny.pixels(2, 3, tiny.SIDE, tiny.SIDE)
    eager = getattr(tiny, name)("eager").model.vision_tower
    for parameter in eager.parameters():
        parameter.mul_(0.25)  # the size of trained weights: large logits would magnify rounding
    weights = eager(pixel_values=pixels, output_attentions=True).attentions
    tower = getattr(tiny, name)("sdpa").model.vision_tower
    tower.load_state_dict(eager.state_dict())
    with captured_attention(tower, (0, 2, 4), has_cls=True) as found:
        tower(pixel_values=pixels)
    for layer, attention in found.items():
        torch.testing.assert_close(attention.saliency(), weights[layer][:, :, 0, 1:], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("left", [True, False])
@torch.no_grad()
def test_fastv_equals_masking_the_dropped_tokens(left):
    """From layer K on, hiding a token from every query is what dropping it does; ranks are the eager weights'."""
    model, inputs = tiny.llava("eager"), tiny.llava_inputs(left=left)
    method = FastV(7, layer=2)
    with compress(model, method) as compression:
        got = model(**inputs)
        kept = compression.last.kept
    weights = model(**inputs, output_attentions=True).attentions[method.layer - 1].mean(1)
    visual, present = inputs["input_ids"] == tiny.IMAGE, inputs["attention_mask"].bool()
    hidden = torch.zeros_like(present)
    for row in range(2):
        last = int(present[row].nonzero()[-1])
        best = weights[row, last].masked_fill(~visual[row], -1).topk(7).indices
        expected = (present[row] & ~visual[row]).scatter(0, best, True)
        assert kept[row].tolist() == expected.nonzero().squeeze(1).tolist()
        hidden[row] = ~expected

    def hide(layer, args, kwargs):
        mask = kwargs["attention_mask"].masked_fill(hidden[:, None, None], torch.finfo(torch.float32).min)
        return args, kwargs | {"attention_mask": mask}

    layers = model.model.language_model.layers[method.layer :]
    handles = [layer.register_forward_pre_hook(hide, with_kwargs=True) for layer in layers]
    masked = model(**inputs).logits
    for handle in handles:
        handle.remove()
    for row in range(2):
        logits = got.logits[row, -len(kept[row]) :]
        torch.testing.assert_close(logits, masked[row, kept[row]], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_fastv_decodes_as_if_dropped_tokens_were_masked(attention):
    """With a cache that is short from layer K on, each step gives what the masked model without a cache gives."""
    model, inputs = tiny.llava(attention), tiny.llava_inputs()
    length = inputs["input_ids"].shape[1]
    with compress(model, FastV(7)) as compression:
        got = model.generate(**inputs, **NEW, output_logits=True, return_dict_in_generate=True)
    kept = compression.last.kept
    oracle = tiny.llava("eager")

    def hide(layer, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        for row, index in enumerate(kept):
            gone = torch.ones(length, dtype=torch.bool)
            gone[index] = False
            mask[row, :, :, :length].masked_fill_(gone, torch.finfo(torch.float32).min)
        return args, kwargs | {"attention_mask": mask}

    for layer in oracle.model.language_model.layers[2:]:
        layer.register_forward_pre_hook(hide, with_kwargs=True)
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, NEW["max_new_tokens"]), value=1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        for step in range(NEW["max_new_tokens"]):
            now = length + step
            logits = oracle(
                input_ids=got.sequences[:, :now],
                attention_mask=mask[:, :now],
                position_ids=positions[:, :now],
                pixel_values=inputs["pixel_values"],
                use_cache=False,
            ).logits[:, -1]
            torch.testing.assert_close(got.logits[step], logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "compressor", [VtcCls(4), VisionZip(4), GlobalCom2(0.5), PruMerge(4), DivPrune(4), ToMe(4)], ids=lambda c: c.name
)
def test_methods_on_blocks_of_patches(compressor):
    model, inputs = tiny.internvl(), tiny.internvl_inputs()
    with compress(model, compressor) as compression:
        model.generate(**inputs, **NEW)
    assert compression.last.before == [9, 9, 9]
    assert compression.last.after == [4, 4, 4]


@pytest.mark.parametrize("compressor", [DivPrune(3), ToMe(3), Uniform(3)], ids=lambda c: c.name)
def test_three_dimensional_positions_stay_the_original_ones(compressor):
    model, inputs = tiny.qwen2_vl(), tiny.qwen2_vl_inputs()
    plain = model.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"], None, inputs["attention_mask"]
    )[0]
    seen = []
    model.model.language_model.register_forward_pre_hook(
        lambda m, a, k: seen.append(k["position_ids"]), with_kwargs=True
    )
    with compress(model, compressor) as compression:
        model.generate(**inputs, **NEW)
    assert compression.last.after == [3, 3]
    for row in range(2):
        present = inputs["attention_mask"][row].bool()
        image = (inputs["input_ids"][row] == tiny.IMAGE).nonzero().squeeze(1)
        stays = present & (inputs["input_ids"][row] != tiny.IMAGE)
        stays[image[compression.last.kept[row]]] = True
        expected = plain[:, row, stays]
        assert torch.equal(seen[0][-3:, row, -expected.shape[1] :], expected)
        for step, positions in enumerate(seen[1:], start=1):
            assert positions[-3:, row, 0].tolist() == (expected[:, -1] + step).tolist()


def test_a_trained_projector_takes_the_place_of_the_models_own():
    model, inputs = tiny.llava(), tiny.llava_inputs()
    packer = TokenPacker(raw_grid=tiny.GRID, embed_dim=32, num_heads=2, hidden_size=48, scale_factor=2)
    with torch.no_grad(), compress(model, packer) as compression:
        logits = model(**inputs).logits
    assert compression.last.after == [9, 9, 9]
    assert logits.shape[1] == inputs["input_ids"].shape[1] - 2 * 27
    for culprit, other in {
        "tower of width 48": TokenPacker(tiny.GRID, 48, 2, 48),
        "hidden state 6 .* 0 to 5": TokenPacker(tiny.GRID, 32, 2, 48, states=(1, 6)),
        r"float64 .*float32 .*model\.dtype": TokenPacker(tiny.GRID, 32, 2, 48).double(),
        r"\[n, 48\]": TokenPacker(tiny.GRID, 32, 2, 44),
    }.items():
        with pytest.raises(VistokError, match=culprit), compress(model, other):
            model(**inputs)
    with pytest.raises(VistokError, match="grid of side 4"), compress(model, TokenPacker(raw_grid=4, embed_dim=32)):
        model(**inputs)
    assert not any("mlp.0" in name and "vistok" in name for name in model.state_dict())


def test_a_tower_without_cls():
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, image_size=24, patch_size=4
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=tiny._text(LlamaConfig),
        image_token_index=tiny.IMAGE,
        vision_feature_select_strategy="full",
    )
    model, inputs = LlavaForConditionalGeneration(config).eval(), tiny.llava_inputs()
    with torch.no_grad():
        plain = model(**inputs).logits
        with compress(model, DivPrune(1.0)):
            torch.testing.assert_close(model(**inputs).logits, plain, atol=1e-5, rtol=1e-5)
        with compress(model, DivPrune(5)) as compression:
            model(**inputs)
        assert compression.last.after == [5, 5, 5]
        for compressor in (VtcCls(5), VisionZip(5), PruMerge(5), GlobalCom2(5 / 36)):
            with compress(model, compressor) as compression:
                model(**inputs)
            assert compression.last.after == [5, 5, 5], compressor.name


TOWERS = {
    "llava_onevision": lambda base: base.vision_tower,
    "gemma3": lambda base: base.vision_tower,
    "idefics3": lambda base: base.vision_model,
    "mistral3": lambda base: base.vision_tower,
    "qwen2_vl": lambda base: base.visual,
    "qwen2_5_vl": lambda base: base.visual,
    "qwen3_vl": lambda base: base.visual,
    "glm4v": lambda base: base.visual,
    "aya_vision": lambda base: base.vision_tower,
    "cohere2_vision": lambda base: base.vision_tower,
    "lfm2_vl": lambda base: base.vision_tower,
}


@pytest.mark.parametrize("name", TOWERS)
@torch.no_grad()
def test_attention_received_is_that_of_eager_weights(name, monkeypatch):
    """Without a CLS token, a token's score is the mean attention that its patches receive in their picture."""
    model, inputs = getattr(tiny, name)("eager"), getattr(tiny, f"{name}_inputs")()
    for parameter in TOWERS[name](model.model).parameters():
        parameter.mul_(0.5)  # the size of trained weights: large logits would magnify rounding
    monkeypatch.setattr(attention_module, "BLOCK", 5)
    family, last = family_of(model), 4
    weights = []
    modules = family.modules(model.model) if hasattr(family, "modules") else attention_layers(TOWERS[name](model.model))
    plain = sys.modules[type(modules[0]).__module__].eager_attention_forward

    def eager(module, *args, **kwargs):
        out = plain(module, *args, **kwargs)
        if module is modules[last]:
            weights.append(out[1])
        return out

    monkeypatch.setattr(sys.modules[type(modules[0]).__module__], "eager_attention_forward", eager)
    pictures = [image for image, _ in family.pictures(model, inputs, lambda layers: Needs(attention=(last,)))]
    received = torch.cat([image.attention[last].saliency().mean(1).flatten() for image in pictures])
    if name == "llava_onevision":  # the canvas of its first picture is shrunk
        expected = torch.cat([row.mean(0).mean(0) for w in weights for row in w])
        thumbnail = pictures[0].attention[last].saliency().mean(1).flatten()
        torch.testing.assert_close(thumbnail, expected[: len(thumbnail)], atol=1e-6, rtol=1e-4)
        return
    if name.startswith(("qwen", "glm")):  # a call a picture; four patches that lie together are a token
        columns = torch.cat([w[0].mean(0).mean(0) for w in weights])
        expected = columns.view(-1, 4).mean(1)
        if name == "qwen2_5_vl":
            grids = inputs["image_grid_thw"]
            window, _ = get_vision_window_index(grids, spatial_merge_size=2, window_size=16, patch_size=4)
            expected = expected[window.argsort()]
    elif name == "mistral3":  # one sequence, in which a picture sees itself
        expected = []
        (w,), start = weights, 0
        for h, width in ((4, 6), (6, 4)):
            mine = w[0, :, start : start + h * width, start : start + h * width].mean(0).mean(0)
            expected.append(mine.view(h // 2, 2, width // 2, 2).mean((1, 3)).flatten())
            start += h * width
        expected = torch.cat(expected)
    elif name == "lfm2_vl":  # padded patches neither look nor are looked at
        (w,) = weights
        expected = []
        for row, (h, width) in zip(w, inputs["spatial_shapes"].tolist(), strict=True):
            mine = row[:, : h * width, : h * width].mean(0).mean(0)
            expected.append(mine.view(h // 2, 2, width // 2, 2).mean((1, 3)).flatten())
        expected = torch.cat(expected)
    else:
        (w,) = weights
        expected = w.mean(1).mean(1).view(-1, 3, 2, 3, 2).mean((2, 4)).flatten()
    torch.testing.assert_close(received, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("has_cls", [True, False])
@torch.no_grad()
def test_attention_in_a_tower_of_timm(has_cls):
    """The CLS row of the softmax weights over the patches, rotated as the tower does it, averaged as its projector."""
    model = tiny.perception_lm()
    last = model.model.vision_tower.timm_model.blocks[4].attn
    last.fused_attn = False
    if not has_cls:
        model.config.vision_use_cls_token = False
        tower = model.model.vision_tower.timm_model
        tower.cls_token, tower.num_prefix_tokens = None, 0
        for block in tower.blocks:
            block.attn.num_prefix_tokens = 0
        tower.pos_embed = torch.nn.Parameter(tower.pos_embed[:, 1:])
    seen = []
    last.attn_drop.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    asked = family_of(model).pictures(model, tiny.perception_lm_inputs(), lambda layers: Needs(attention=(4,)))
    got = torch.cat([image.attention[4].saliency() for image, _ in asked])
    (weights,) = seen
    rows = weights[:, :, 0, 1:] if has_cls else weights.mean(2)
    expected = rows.unflatten(-1, (3, 2, 3, 2)).mean((-3, -1)).flatten(-2)
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_what_two_layers_read_alike_is_worked_out_once(monkeypatch):
    """Qwen2.5-VL answers for layers of windows with the last full one before them."""
    model, calls = tiny.qwen2_5_vl(), []
    plain = attention_module.received_attention
    monkeypatch.setattr(attention_module, "received_attention", lambda *args: calls.append(1) or plain(*args))
    pictures = list(family_of(model).pictures(model, tiny.qwen2_5_vl_inputs(), lambda _: Needs(attention=(2, 3, 4))))
    for image, _ in pictures:
        scores = [image.attention[layer].saliency() for layer in (2, 3, 4)]
        assert torch.equal(scores[0], scores[1])
        assert not torch.equal(scores[0], scores[2])
    assert len(calls) == 2 * len(pictures)
