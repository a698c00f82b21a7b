"""TokenFlow: prefixes of scales, both decoders from the same indices, backbones under their published names."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from vistok.errors import VistokError
from vistok.tokenizers.tokenflow import TokenFlow
from vistok.tokenizers.tokenflow_backbone import convert_backbone
from vistok.tokenizers.tokenflow_config import PRESETS, TokenFlowConfig

TINY = TokenFlowConfig(
    backbone="none",
    backbone_width=24,
    backbone_layers=2,
    backbone_heads=2,
    backbone_mlp=48,
    backbone_patch=4,
    image_size=16,
    codebook_size=32,
    semantic_dim=6,
    pixel_dim=4,
    scales=(1, 2, 4),
    channels=32,
    channel_mult=(1, 1, 1),
    res_blocks=1,
    z_channels=16,
    decoder_channels=32,
    decoder_res_blocks=1,
    semantic_width=24,
    semantic_depth=1,
    semantic_heads=2,
    semantic_out=10,
)


def _model(config: TokenFlowConfig = TINY) -> TokenFlow:
    torch.manual_seed(0)
    return TokenFlow(config).eval()


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(3, 3, 16, 16, generator=generator) * 2 - 1, torch.randn(3, 16, 24, generator=generator)


def test_whole_scales_decode_and_rows_may_differ():
    model = _model()
    tokens = model.encode(*_inputs())
    assert tokens.shape == (3, 21) and model.capabilities.lengths == (1, 5, 21)
    lengths = torch.tensor([5, 1, 21])
    pictures, features = model.decode(tokens, lengths), model.semantics(tokens, lengths)
    assert features.shape == (3, 16, 10)
    for row, length in enumerate(lengths.tolist()):
        one = tokens[row : row + 1]
        torch.testing.assert_close(pictures[row : row + 1], model.decode(one, length), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features[row : row + 1], model.semantics(one, length), atol=1e-5, rtol=1e-5)
    with pytest.raises(VistokError, match="this tokenizer decodes 1, 5, 21 tokens, got 6"):
        model.decode(tokens, 6)


def test_a_tokenizer_without_a_backbone_says_so():
    with pytest.raises(VistokError, match="no vision network: hand its features in"):
        _model().encode(_inputs()[0])


def test_training_reaches_every_weight():
    model = _model().train()
    images, features = _inputs()
    out = model(images, features, torch.Generator().manual_seed(0))
    (out.images.square().mean() + out.semantics.square().mean() + out.quantized.loss).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()] == []


def test_save_and_load_round_trip_and_dropped_buffers(tmp_path):
    model = _model()
    model.save_pretrained(tmp_path)
    assert torch.equal(TokenFlow.from_pretrained(tmp_path).encode(*_inputs()), model.encode(*_inputs()))
    published = {**model.state_dict(), "quantize.codebook_used": torch.zeros(131072)}
    published["scaling_layer.shift"] = published["scaling_layer.scale"] = torch.zeros(1, 3, 1, 1)
    other = {key: torch.zeros_like(value) for key, value in model.state_dict().items()}
    torch.save({"ema": published, "model": other}, tmp_path / "mine.pt")
    loaded = TokenFlow.from_pretrained(tmp_path / "mine.pt", "TokenFlow-CLIP-B", **dataclasses.asdict(TINY))
    assert torch.equal(loaded.encode(*_inputs()), model.encode(*_inputs()))
    with pytest.raises(VistokError, match="give a preset"):
        TokenFlow.from_pretrained(tmp_path / "mine.pt")


def _openai_clip(width: int, layers: int, mlp: int, patch: int, grid: int) -> dict[str, torch.Tensor]:
    """OpenAI's names of a CLIP vision tower, with random weights."""
    shapes = {
        "conv1.weight": (width, 3, patch, patch),
        "class_embedding": (width,),
        "positional_embedding": (1 + grid * grid, width),
    }
    for norm in ("ln_pre", "ln_post"):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        shapes |= {
            f"{block}attn.in_proj_weight": (3 * width, width),
            f"{block}attn.in_proj_bias": (3 * width,),
            f"{block}attn.out_proj.weight": (width, width),
            f"{block}attn.out_proj.bias": (width,),
            f"{block}mlp.c_fc.weight": (mlp, width),
            f"{block}mlp.c_fc.bias": (mlp,),
            f"{block}mlp.c_proj.weight": (width, mlp),
            f"{block}mlp.c_proj.bias": (width,),
        }
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
    generator = torch.Generator().manual_seed(3)
    return {"encoder_vqkd." + key: 0.3 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def _clip_by_hand(state: dict[str, torch.Tensor], images: torch.Tensor, heads: int) -> torch.Tensor:
    """The tower straight from OpenAI's weights: patch features after the last norm."""
    f = torch.nn.functional
    w = {key.removeprefix("encoder_vqkd."): value for key, value in state.items()}
    width = len(w["class_embedding"])

    def norm(x, name):
        return f.layer_norm(x, (width,), w[name + ".weight"], w[name + ".bias"])

    x = f.conv2d(images, w["conv1.weight"], stride=w["conv1.weight"].shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], 1) + w["positional_embedding"]
    x = norm(x, "ln_pre")
    for i in range(2):
        b = f"transformer.resblocks.{i}."
        qkv = f.linear(norm(x, b + "ln_1"), w[b + "attn.in_proj_weight"], w[b + "attn.in_proj_bias"])
        q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + f.linear(mixed.transpose(1, 2).flatten(2), w[b + "attn.out_proj.weight"], w[b + "attn.out_proj.bias"])
        h = f.linear(norm(x, b + "ln_2"), w[b + "mlp.c_fc.weight"], w[b + "mlp.c_fc.bias"])
        x = x + f.linear(h * torch.sigmoid(1.702 * h), w[b + "mlp.c_proj.weight"], w[b + "mlp.c_proj.bias"])
    return norm(x, "ln_post")[:, 1:]


@pytest.mark.slow  # importing transformers takes seconds, on a busy machine tens of them
def test_openai_clip_weights_load_into_transformers_and_give_its_features():
    config = dataclasses.replace(TINY, backbone="clip")
    model, images = _model(config), _inputs()[0]
    state = _openai_clip(24, 2, 48, 4, 4)
    converted = convert_backbone({**_model().state_dict(), **state}, config)
    model.load_state_dict(converted, strict=True)
    expected = _clip_by_hand(state, images, heads=2)
    torch.testing.assert_close(model.backbone_features(images), expected, atol=1e-4, rtol=1e-4)
    assert model.encode(images).shape == (3, 21)


@pytest.mark.slow  # importing transformers takes seconds, on a busy machine tens of them
def test_siglip_weights_of_transformers_4_load_and_its_last_layer_is_not_used():
    config = dataclasses.replace(TINY, backbone="siglip")
    model, images = _model(config), _inputs()[0]
    plain = model.state_dict()
    old = {key.replace("encoder_vqkd.", "encoder_vqkd.vision_model."): value for key, value in plain.items()}
    converted = convert_backbone(old, config)
    assert converted.keys() == plain.keys()
    assert any(".head." in key for key in plain)
    before = model.backbone_features(images)
    with torch.no_grad():
        for parameter in model.encoder_vqkd.encoder.layers[-1].parameters():
            parameter.zero_()
    assert torch.equal(model.backbone_features(images), before)
    torch.testing.assert_close(model.backbone_features(images * 3), model.backbone_features((images * 3).clamp(-1, 1)))


def test_positions_of_the_training_size_are_resized_to_the_grid_in_use():
    config = PRESETS["TokenFlow-CLIP-B"]
    flat = {"positional_embedding": torch.ones(1 + 14 * 14, 8), "other": torch.zeros(2)}
    state = {"encoder_vqkd." + key: value for key, value in flat.items()}
    state["decoder_vqkd.pos_embed"] = torch.ones(1, 1 + 14 * 14, 8)
    converted = convert_backbone(state, config)
    assert converted["decoder_vqkd.pos_embed"].shape == (1, 257, 8)
    table = converted["encoder_vqkd.embeddings.position_embedding.weight"]
    torch.testing.assert_close(table, torch.ones(257, 8))
    same = convert_backbone(state, dataclasses.replace(config, image_size=224, scales=(1, 14)))
    assert same["decoder_vqkd.pos_embed"] is not None and same["decoder_vqkd.pos_embed"].shape == (1, 197, 8)


def test_published_sequences_have_the_published_lengths():
    from itertools import accumulate

    totals = {name: list(accumulate(s * s for s in c.scales))[-1] for name, c in PRESETS.items()}
    assert totals == {"TokenFlow-CLIP-B": 817, "TokenFlow-SigLIP": 2227}
    assert PRESETS["TokenFlow-SigLIP"].pixel_size == 432


def test_an_unknown_backbone_is_named():
    with pytest.raises(VistokError, match="unknown TokenFlow backbone 'dino'"):
        TokenFlow(dataclasses.replace(TINY, backbone="dino"))
