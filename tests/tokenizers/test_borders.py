"""What a tokenizer is given and cannot mean is refused in a sentence, in every family."""

from __future__ import annotations

import copy

import pytest
import torch

from vistok.errors import VistokError
from vistok.tokenizers import TOKENIZERS, FlexTok, KLAutoencoder, MaskGITVQGAN, Seed, TiTok, TokenFlow, VQTokenizer
from vistok.tokenizers.flextok_config import FlexTokConfig
from vistok.tokenizers.kl import KLConfig
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGANConfig
from vistok.tokenizers.seed_config import SeedConfig
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.tokenizers.tokenflow_config import TokenFlowConfig
from vistok.tokenizers.vq import VQConfig
from vistok.tokenizers.vq_upscaled import UpscaledVQ, UpscaledVQConfig

THIN = {"channels": 32, "channel_mult": (1, 1), "res_blocks": 1}
SHAPE = (16, 1, 1)
TITOK = {"encoder": SHAPE, "decoder": SHAPE, "num_tokens": 4, "token_size": 4, "image_size": 16, "patch_size": 8}
TITOK |= {"legacy": False, "pixel_decoder": False}


def build() -> dict[str, torch.nn.Module]:
    """A small tokenizer of every family, for pictures of 16x16 pixels."""
    flextok = FlexTokConfig((64, 1), (64, 1), registers=4, levels=(4, 4), vae=False, latent_channels=3, latent_size=16)
    tokenflow = TokenFlowConfig(
        backbone="scenes", image_size=64, scales=(1, 2), codebook_size=16, semantic_width=16, semantic_depth=1,
        semantic_heads=1, semantic_out=8, backbone_width=64, decoder_channels=32, decoder_res_blocks=1, z_channels=8,
        **THIN,
    )  # fmt: skip
    seed = SeedConfig(
        image_size=16, tower_width=16, tower_layers=1, tower_heads=1, tower_mlp=32, tower_patch=8, width=16, layers=2,
        heads=1, hidden=32, num_tokens=4, codebook_size=16, code_dim=4, decode_layers=1, decode_heads=1,
        image_down=(8, 4), embed_dim=6, pixels="vq-mini", pixel_layers=1, pixel_grid=4,
    )  # fmt: skip
    return {
        "seed": Seed(seed),
        "vq_upscaled": UpscaledVQ(UpscaledVQConfig(res_blocks=1)),  # over vq-mini's 512 codes
        "vq": VQTokenizer(VQConfig(16, 4, z_channels=8, **THIN)),
        "kl": KLAutoencoder(KLConfig(z_channels=4, encoder_attention=(), **THIN)),
        "titok": TiTok(TiTokConfig(codebook_size=16, **TITOK)),
        "titok vae": TiTok(TiTokConfig(codebook_size=0, l2_norm=False, mode="vae", **TITOK)),
        "flextok": FlexTok(flextok),
        "tokenflow": TokenFlow(tokenflow),
        "maskgit_vqgan": MaskGITVQGAN(MaskGITVQGANConfig(16, 4, **THIN)),
    }


@pytest.fixture(scope="module")
def tokenizers():
    torch.manual_seed(0)
    return {name: tokenizer.eval() for name, tokenizer in build().items()}


NAMES = ["vq", "kl", "titok", "titok vae", "flextok", "tokenflow", "maskgit_vqgan", "seed", "vq_upscaled"]
INDICES = [name for name in NAMES if name not in ("kl", "titok vae")]


def pictures(tokenizer) -> torch.Tensor:
    side = tokenizer.capabilities.image_size or 16
    return torch.rand(2, 3, side, side) * 2 - 1


def test_every_family_is_here(tokenizers):
    assert {name.split()[0] for name in NAMES} == set(TOKENIZERS.table) and set(NAMES) == set(tokenizers)


@pytest.mark.parametrize("name", NAMES)
def test_what_encode_gives_decode_takes(tokenizers, name):
    tokenizer = tokenizers[name]
    images = pictures(tokenizer)
    tokens = tokenizer.encode(images)
    back = tokenizer.decode(tokens)
    assert back.shape == images.shape
    tokenizer.encode(back)  # decoded pictures are not clamped, and are pictures all the same
    if name in INDICES:
        assert torch.equal(tokenizer.decode(tokens.int()), back)


@torch.no_grad()
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_real_numbers_may_have_any_format(tokenizers, name, given, own):
    tokenizer = copy.deepcopy(tokenizers[name]).to(own)
    images = pictures(tokenizer).to(given)
    tokens = tokenizer.encode(images)
    assert torch.equal(tokens, tokenizer.encode(images.to(own)))
    if name not in INDICES:
        vectors = tokens.to(given)
        assert torch.equal(tokenizer.decode(vectors), tokenizer.decode(vectors.to(own)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["seed", "tokenflow"])
def test_features_may_have_any_format(tokenizers, name):
    tokenizer = tokenizers[name]
    images = pictures(tokenizer)
    features = (tokenizer.features if name == "seed" else tokenizer.backbone_features)(images).double()
    assert torch.equal(tokenizer.encode(images, features=features), tokenizer.encode(images))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
@pytest.mark.parametrize("name", INDICES)
def test_indices_of_other_formats_are_refused(tokenizers, name, dtype):
    tokenizer = tokenizers[name]
    with pytest.raises(VistokError, match=f"indices.*{str(dtype).removeprefix('torch.')}"):
        tokenizer.decode(torch.zeros_like(tokenizer.encode(pictures(tokenizer))).to(dtype))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["vq", "kl", "maskgit_vqgan"])
@pytest.mark.parametrize("sides", [(1, 1), (1, 2), (3, 1)])
def test_pictures_of_few_tokens_are_the_same_in_every_batch(tokenizers, name, sides):
    tokenizer = tokenizers[name]
    height, width = (side * tokenizer.capabilities.multiple for side in sides)
    images = torch.rand(2, 3, height, width) * 2 - 1
    together, alone = tokenizer.encode(images), tokenizer.encode(images[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)
    assert tokenizer.decode(alone).shape == (1, 3, height, width)
    # Two values a group are divided by their own spread, which enlarges rounding.
    torch.testing.assert_close(tokenizer.decode(together)[:1], tokenizer.decode(alone), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda x: ((x + 1) * 127.5).to(torch.uint8), "uint8.*127.5"),
        (lambda x: (x + 1) * 127.5, "values up to 2.*127.5"),
        (lambda x: x.masked_fill(torch.rand_like(x) < 0.5, torch.nan), "not finite"),
        (lambda x: x / 0, "not finite"),
        (lambda x: x[0], r"got \[3, .*images\[None\]"),
        (lambda x: x.movedim(1, -1), r"\[B, 3, H, W\]"),
        (lambda x: x[:, :1], r"\[B, 3, H, W\]"),
        (lambda x: x[..., :-3], "got"),
        (lambda x: x > 0, "bool"),
    ],
)
def test_pictures_that_are_none(tokenizers, name, spoil, culprit):
    tokenizer = tokenizers[name]
    with pytest.raises(VistokError, match=culprit):
        tokenizer.encode(spoil(pictures(tokenizer)))


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda t, k: t - k, "hold -.*codebook"),
        (lambda t, k: t + k, "codebook has the indices 0 to (15|511)"),
        (lambda t, k: torch.full_like(t, 2**40), "1099511627776"),
        (lambda t, k: t.float(), "indices.*float32"),
        (lambda t, k: t.half() / 0, "indices.*float16"),
        (lambda t, k: t > 3, "bool"),
        (lambda t, k: t[0], r"tokens\[None\]"),
        (lambda t, k: t[None], "decodes tokens"),
        (lambda t, k: t[:0], "got none"),
    ],
)
def test_indices_that_are_none(tokenizers, name, spoil, culprit):
    tokenizer = tokenizers[name]
    tokens = tokenizer.encode(pictures(tokenizer))
    with pytest.raises(VistokError, match=culprit):
        tokenizer.decode(spoil(tokens, tokenizer.capabilities.codebook_size))


@pytest.mark.parametrize("name", ["kl", "titok vae"])
@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda t: t.long(), "continuous vectors, got int64"),
        (lambda t: t * torch.nan, "not finite"),
        (lambda t: t[0], r"tokens\[None\]"),
        (lambda t: t.transpose(1, -1)[..., :3], "decodes tokens"),
    ],
)
def test_vectors_that_are_none(tokenizers, name, spoil, culprit):
    tokenizer = tokenizers[name]
    with pytest.raises(VistokError, match=culprit):
        tokenizer.decode(spoil(tokenizer.encode(pictures(tokenizer))))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("length", [0, -1, 10**6, torch.tensor([1.0, 2.0]), torch.tensor([[1]]), torch.tensor(3)])
def test_lengths_that_are_none(tokenizers, name, length):
    tokenizer = tokenizers[name]
    tokens = tokenizer.encode(pictures(tokenizer))
    with pytest.raises(VistokError, match=r"decodes? |numbers of tokens"):
        tokenizer.decode(tokens, length)


@pytest.mark.parametrize("name", ["titok", "flextok", "tokenflow"])
def test_more_tokens_than_a_picture_has(tokenizers, name):
    tokenizer = tokenizers[name]
    tokens = tokenizer.encode(pictures(tokenizer))
    with pytest.raises(VistokError, match=r"decodes? "):
        tokenizer.decode(torch.cat([tokens, tokens], 1))
