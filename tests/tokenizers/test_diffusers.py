"""Tokenizers as models of diffusers and back: the same codes, latents and pictures."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from vistok.data.scenes import render, sample_scenes
from vistok.errors import VistokError
from vistok.tokenizers.kl import KLAutoencoder, KLConfig
from vistok.tokenizers.vq import VQConfig, VQTokenizer

SMALL_VQ = VQConfig(64, 8, False, 32, (1, 2, 4), 1, 32)
SMALL_KL = KLConfig(32, (1, 2, 4), 1, 4, (1, 2), (0,), 0.3)
TINY = {"block_out_channels": (32, 64), "norm_num_groups": 32, "latent_channels": 4}
TYPES = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}


@pytest.fixture(scope="module")
def pictures():
    return render(sample_scenes(2, 9), 64)


@pytest.mark.parametrize("source", ["vq-mini", SMALL_VQ], ids=["vq-mini", "small"])
@torch.no_grad()
def test_a_vq_tokenizer_gives_the_same_codes_and_pictures(source, pictures):
    torch.manual_seed(0)
    ours = VQTokenizer.from_pretrained(source) if isinstance(source, str) else VQTokenizer(source).eval()
    theirs = ours.to_diffusers()
    assert isinstance(theirs, VQModel)
    tokens = ours.encode(pictures)
    latents = theirs.encode(pictures).latents
    _, _, (_, _, codes) = theirs.quantize(latents)
    assert torch.equal(codes.view_as(tokens), tokens)
    assert torch.allclose(theirs.decode(latents).sample, ours.decode(tokens), atol=1e-4)
    again = VQTokenizer.from_diffusers(theirs)
    assert torch.equal(again.encode(pictures), tokens)
    assert torch.allclose(again.decode(tokens), ours.decode(tokens), atol=1e-4)


@pytest.mark.parametrize("source", ["kl-mini", SMALL_KL], ids=["kl-mini", "small"])
@torch.no_grad()
def test_a_kl_autoencoder_gives_the_same_latents_and_pictures(source, pictures):
    torch.manual_seed(0)
    ours = KLAutoencoder.from_pretrained(source) if isinstance(source, str) else KLAutoencoder(source).eval()
    theirs = ours.to_diffusers()
    assert isinstance(theirs, AutoencoderKL) and theirs.config.scaling_factor == ours.config.scaling_factor
    latents = theirs.encode(pictures).latent_dist.mode() * theirs.config.scaling_factor
    assert torch.allclose(latents, ours.encode(pictures), atol=1e-4)
    decoded = theirs.decode(latents / theirs.config.scaling_factor).sample
    assert torch.allclose(decoded, ours.decode(latents), atol=1e-4)
    again = KLAutoencoder.from_diffusers(theirs)
    assert again.config == ours.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


def test_a_saved_model_of_diffusers_is_read(tmp_path, pictures):
    theirs = AutoencoderKL(**TINY, **TYPES)
    theirs.save_pretrained(tmp_path)
    ours = KLAutoencoder.from_diffusers(AutoencoderKL.from_pretrained(tmp_path))
    with torch.no_grad():
        expected = theirs.eval().encode(pictures).latent_dist.mode() * theirs.config.scaling_factor
    assert torch.allclose(ours.encode(pictures), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "culprit"),
    [
        (
            lambda: KLAutoencoder.from_diffusers(AutoencoderKL(**TINY, **TYPES, mid_block_add_attention=False)),
            "mid_block",
        ),
        (lambda: KLAutoencoder.from_diffusers(AutoencoderKL(**TINY, **TYPES, in_channels=1)), "in_channels 1"),
        (lambda: KLAutoencoder.from_diffusers(AutoencoderKL(**TINY, **TYPES, shift_factor=0.1)), "shift_factor"),
        (lambda: VQTokenizer.from_diffusers(VQModel(**TINY, **TYPES)), "down_block_types"),
    ],
)
def test_another_network_is_refused_by_name(build, culprit):
    with pytest.raises(VistokError, match=culprit):
        build()
