"""TiTok and One-D-Piece: published configurations, prefixes, mixed lengths, Tail Token Drop, strict loading."""

from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch
from safetensors.torch import save_file

from vistok.errors import VistokError
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from vistok.tokenizers.tail_drop import LAWS, sample_lengths
from vistok.tokenizers.titok import TiTok
from vistok.tokenizers.titok_config import PRESETS, SIZES, TiTokConfig, from_published

TINY = TiTokConfig(
    (32, 2, 2),
    (32, 2, 2),
    num_tokens=6,
    codebook_size=16,
    token_size=4,
    variable_length=True,
    image_size=16,
    patch_size=8,
    proxy_size=12,
    proxy_dim=8,
    proxy_channels=32,
    proxy_mult=(1, 1, 1, 1),
    proxy_res_blocks=1,
)
# Attention kernels of other shapes add up in another order.
close = functools.partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
SECOND = dataclasses.replace(TINY, legacy=False, pixel_decoder=False, variable_length=False)


def _model(config: TiTokConfig = TINY) -> TiTok:
    torch.manual_seed(0)
    return TiTok(config).eval()


def _images(count: int = 3, side: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def _published(**model) -> dict:
    entries = {
        "codebook_size": 4096,
        "token_size": 12,
        "use_l2_norm": True,
        "commitment_cost": 0.25,
        "vit_enc_model_size": "base",
        "vit_dec_model_size": "large",
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "num_latent_tokens": 64,
    }
    return {"model": {"vq_model": entries | model}, "dataset": {"preprocessing": {"crop_size": 256}}}


def test_published_configurations_give_the_presets():
    one_d_piece = _published(
        vit_enc_model_size="large", num_latent_tokens=256, finetune_decoder=True, strict_length_assertion=False
    )
    assert from_published(one_d_piece) == PRESETS["One-D-Piece-L-256"]
    first = _published(vit_dec_model_size="base", finetune_decoder=True)
    assert from_published(first) == PRESETS["TiTok-B-64"]
    second = _published(
        codebook_size=8192,
        token_size=64,
        use_l2_norm=False,
        is_legacy=False,
        finetune_decoder=False,
        quantize_mode="vq",
    )
    assert from_published(second) == PRESETS["TiTok-BL-64-VQ8k"]
    vae = _published(token_size=16, use_l2_norm=False, is_legacy=False, finetune_decoder=False, quantize_mode="vae")
    assert from_published(vae) == PRESETS["TiTok-BL-64-VAE"]


@pytest.mark.parametrize(
    "change", [{"vit_enc_model_size": "huge"}, {"quantize_mode": "fsq"}, {"vit_dec_patch_size": 8}]
)
def test_a_foreign_configuration_is_refused(change):
    with pytest.raises(VistokError, match=r"not that of a TiTok or One-D-Piece"):
        from_published(_published(**change))
    with pytest.raises(VistokError, match=r"not that of a TiTok or One-D-Piece"):
        from_published({"model": {}})


def test_a_published_folder_loads_and_a_wrong_key_does_not(tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "base", (32, 2, 2))
    entries = _published(
        vit_dec_model_size="base",
        num_latent_tokens=6,
        codebook_size=16,
        token_size=4,
        is_legacy=False,
        finetune_decoder=False,
    )
    entries["model"]["vq_model"] |= {"vit_enc_patch_size": 8, "vit_dec_patch_size": 8}
    entries["dataset"]["preprocessing"]["crop_size"] = 16
    (tmp_path / "config.json").write_text(json.dumps(entries))
    state = _model(SECOND).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    loaded = TiTok.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(_images()), _model(SECOND).encode(_images()))
    save_file({**state, "extra": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(VistokError, match="unexpected extra"):
        TiTok.from_pretrained(tmp_path)


def test_save_and_load_round_trip(tmp_path):
    model = _model()
    model.save_pretrained(tmp_path)
    again = TiTok.from_pretrained(tmp_path)
    assert again.config == TINY
    assert torch.equal(again.encode(_images()), model.encode(_images()))


def test_a_prefix_is_the_first_tokens_and_rows_may_differ():
    model = _model()
    tokens = model.encode(_images())
    assert tokens.shape == (3, 6) and tokens.dtype == torch.int64
    lengths = torch.tensor([1, 6, 3])
    mixed = model.decode(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = model.decode(tokens[row : row + 1, :length])
        close(mixed[row : row + 1], alone)
        close(model.decode(tokens[row : row + 1], length), alone)
    assert not torch.allclose(mixed[0], model.decode(tokens)[0])


@pytest.mark.parametrize("length", [0, 7, torch.tensor([1, 7, 2])])
def test_lengths_that_do_not_exist_are_refused(length):
    with pytest.raises(VistokError, match=r"decode"):
        _model().decode(torch.zeros(3, 6, dtype=torch.long), length)


def test_titok_decodes_only_whole_sequences():
    with pytest.raises(VistokError, match="decodes all 6 tokens of a picture and no fewer, got 4"):
        _model(SECOND).decode(torch.zeros(1, 6, dtype=torch.long), 4)


def test_another_picture_size_is_refused():
    with pytest.raises(VistokError, match="takes pictures of 16x16 pixels, got 24x16"):
        _model().encode(torch.zeros(1, 3, 24, 16))


def test_tail_token_drop_hides_the_tail_from_the_decoder_and_not_from_the_losses():
    model = _model()
    images = _images()
    whole, all_codes = model(images)
    short, few_codes = model(images, keep=2)
    close(short, model.decode(model.encode(images), 2))
    assert not torch.allclose(short, whole)
    assert all_codes.loss == few_codes.loss
    rows, _ = model(images, keep=torch.tensor([2, 6, 6]))
    close(rows[0], short[0])
    close(rows[1:], whole[1:])


def test_the_first_stage_predicts_proxy_codes_and_says_so():
    model = _model(dataclasses.replace(TINY, pixel_decoder=False))
    logits, _ = model(_images())
    assert logits.shape == (3, 12, 2, 2)
    with pytest.raises(VistokError, match="first training stage"):
        model.decode(torch.zeros(1, 6, dtype=torch.long))


def test_gradients_reach_every_weight():
    model = _model().train()
    images = _images()
    painted, quantized = model(images)
    (painted.square().mean() + quantized.loss).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == []


def test_continuous_tokens_have_no_size_in_bits():
    model = _model(dataclasses.replace(SECOND, mode="vae"))
    tokens = model.encode(_images())
    assert tokens.shape == (3, 6, 4) and model.decode(tokens).shape == (3, 3, 16, 16)
    with pytest.raises(VistokError, match="continuous vectors"):
        _ = model.capabilities.bits_per_token


def test_proxy_codes_take_any_multiple_and_only_whole_grids():
    torch.manual_seed(0)
    proxy = MaskGITVQGAN(MaskGITVQGANConfig(16, 8, 32, (1, 1), 1)).eval()
    tokens = proxy.encode(_images(1, 8)[..., :6])
    assert tokens.shape == (1, 4, 3)
    assert proxy.decode(tokens, 12).shape == (1, 3, 8, 6)
    with pytest.raises(VistokError, match="all 12 tokens of a picture and no fewer, got 5"):
        proxy.decode(tokens, 5)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("maximum", [1, 6, 8, 256])
def test_length_laws_cover_their_range(law, maximum):
    drawn = sample_lengths(law, maximum, 4000, torch.Generator().manual_seed(0))
    powers = sorted({2**i for i in range(9) if 2**i < maximum} | {maximum})
    assert drawn.min() >= 1 and drawn.max() == maximum
    if law == "uniform":
        counts = torch.bincount(drawn, minlength=maximum + 1)[1:]
        assert (counts - 4000 / maximum).abs().max() < 6 * (4000 / maximum) ** 0.5 + 1
    else:
        assert drawn.unique().tolist() == powers
    if law == "pow2":
        counts = torch.bincount(drawn)[powers]
        assert (counts - 4000 / len(powers)).abs().max() < 6 * (4000 / len(powers)) ** 0.5


def test_an_unknown_length_law_is_named():
    with pytest.raises(VistokError, match="unknown length law 'pow3': did you mean pow2"):
        sample_lengths("pow3", 8, 1, torch.Generator())
