"""The KL autoencoder: shapes, files, and the start from a trained VQ tokenizer."""

from __future__ import annotations

import pytest
import torch

from vistok.data.scenes import render, sample_scenes
from vistok.errors import VistokError
from vistok.tokenizers.kl import KLAutoencoder, KLConfig
from vistok.tokenizers.load import load_tokenizer
from vistok.tokenizers.vq import VQTokenizer
from vistok.train.tasks.kl_from_vq import autoencoder_from_vq

TINY = KLConfig(
    channels=32, channel_mult=(1, 1), res_blocks=1, z_channels=3, encoder_attention=(1,), scaling_factor=0.5
)


def test_latents_are_scaled_and_decode_to_pictures(tmp_path) -> None:
    model = KLAutoencoder(TINY).eval()
    images = torch.rand(2, 3, 8, 12) * 2 - 1
    tokens = model.encode(images)
    assert tokens.shape == (2, 3, 4, 6)
    torch.testing.assert_close(tokens, model.posterior(images).mean.detach() * 0.5)
    assert model.decode(tokens).shape == images.shape
    model.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path)).tokenizer
    assert isinstance(loaded, KLAutoencoder)
    torch.testing.assert_close(loaded.encode(images), tokens)


def test_mistakes_are_told() -> None:
    model = KLAutoencoder(TINY)
    with pytest.raises(VistokError, match="multiples of 2"):
        model.encode(torch.zeros(1, 3, 9, 8))
    with pytest.raises(VistokError, match="all 16 tokens"):
        model.decode(torch.zeros(1, 3, 4, 4), length=5)
    with pytest.raises(VistokError, match="no bits"):
        _ = model.capabilities.bits_per_token


def test_divergence_is_zero_at_the_normal_law_and_positive_elsewhere() -> None:
    model = KLAutoencoder(TINY)
    posterior = model.posterior(torch.zeros(1, 3, 8, 8))
    normal = type(posterior)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
    assert normal.kl().abs().max() == 0
    assert posterior.kl().min() > 0


def test_the_start_from_a_vq_tokenizer_reconstructs() -> None:
    vq = VQTokenizer.from_pretrained("vq-mini")
    model = autoencoder_from_vq(vq, 3, render(sample_scenes(16, 0), 64))
    images = render(sample_scenes(6, 1), 64)
    with torch.no_grad():
        error = (model.decode(model.encode(images)).clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
        spread = model.posterior(images).mean.std()
    assert float((-10 * error.log10()).mean()) > 24
    assert 0.7 < float(spread) < 1.4
