"""The VQ tokenizer: shapes, round trips, what training does to codes, and the embedded one's quality."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.scenes import render, sample_scenes
from vistok.data.scenes.splits import HELD_OUT
from vistok.errors import VistokError
from vistok.tokenizers.quantizers import VectorQuantizer
from vistok.tokenizers.vq import PRESETS, VQConfig, VQTokenizer

TINY = VQConfig(codebook_size=32, channels=32, channel_mult=(1, 1, 2), res_blocks=1, z_channels=32)


def test_presets_have_the_published_downsampling():
    assert {name: config.downsample for name, config in PRESETS.items()} == {"VQ-16": 16, "VQ-8": 8}


def test_any_multiple_of_the_factor_is_taken_and_others_are_refused():
    tokenizer = VQTokenizer(TINY).eval()
    tokens = tokenizer.encode(torch.zeros(2, 3, 16, 24))
    assert tokens.shape == (2, 4, 6)
    assert tokenizer.decode(tokens).shape == (2, 3, 16, 24)
    with pytest.raises(VistokError, match="multiples of 4, got 18x16"):
        tokenizer.encode(torch.zeros(1, 3, 18, 16))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), l2=st.booleans())
def test_codes_are_their_own_nearest_neighbours(seed, l2):
    torch.manual_seed(seed)
    quantizer = VectorQuantizer(24, 6, l2_norm=l2)
    torch.nn.init.normal_(quantizer.embedding.weight)
    indices = torch.randint(24, (3, 4, 5))
    assert torch.equal(quantizer.indices(quantizer.codes(indices).movedim(-1, 1)), indices)


def test_revival_moves_dead_codes_onto_latents_and_leaves_the_living():
    quantizer = VectorQuantizer(16, 4)
    z = torch.randn(2, 4, 8, 8)
    counts = torch.ones(16)
    counts[3:7] = 0
    before = quantizer.embedding.weight.detach().clone()
    assert quantizer.revive(z, counts, torch.Generator().manual_seed(0)) == 4
    after = quantizer.embedding.weight.detach()
    assert torch.equal(before[counts > 0], after[counts > 0])
    pool = torch.nn.functional.normalize(z.movedim(1, -1).reshape(-1, 4), dim=-1)
    assert ((after[3:7, None] - pool).abs().amax(-1).amin(1) < 1e-6).all()


def test_save_and_load_round_trip(tmp_path):
    tokenizer = VQTokenizer(TINY).eval()
    tokenizer.save_pretrained(tmp_path)
    again = VQTokenizer.from_pretrained(tmp_path)
    images = torch.randn(1, 3, 16, 16).clamp(-1, 1)
    assert again.config == TINY
    assert torch.equal(tokenizer.encode(images), again.encode(images))


def test_the_embedded_tokenizer_keeps_its_card_figures():
    tokenizer = VQTokenizer.from_pretrained("vq-mini")
    images = render(sample_scenes(128, HELD_OUT), 64)
    tokens = tokenizer.encode(images)
    assert tokens.shape == (128, 16, 16)
    error = (tokenizer.decode(tokens).clamp(-1, 1) - images).square().mean((1, 2, 3)) / 4
    assert (-10 * error.log10()).mean() >= 28
    assert len(tokens.unique()) / tokenizer.config.codebook_size >= 0.8
