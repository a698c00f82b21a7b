"""SEED: strict loading of both published decoders, causal prefixes, half-precision ids, and an unCLIP that paints."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from vistok.errors import VistokError
from vistok.tokenizers import Seed, UnClip, load_tokenizer
from vistok.tokenizers.seed_config import PRESETS, SeedConfig

TINY = SeedConfig(
    image_size=28, tower_width=16, tower_layers=2, tower_heads=2, tower_mlp=24, tower_patch=14, width=16, layers=3,
    heads=2, hidden=32, num_tokens=8, codebook_size=64, code_dim=8, decode_layers=1, decode_heads=2,
    image_down=(12, 8, 4), embed_dim=6,
)  # fmt: skip
REVERSED = replace(TINY, image_down=())
EXTRA = {  # what the published file holds besides
    "Qformer.bert.embeddings.position_ids": torch.arange(4)[None],
    "Qformer.bert.embeddings.word_embeddings.weight": torch.zeros(4, 16),
    "Qformer.cls.predictions.bias": torch.zeros(4),
    "Qformer.bert.encoder.layer.0.intermediate.dense.weight": torch.zeros(32, 16),
    "Qformer.bert.encoder.layer.0.output.LayerNorm.bias": torch.zeros(16),
    "vision_proj.weight": torch.zeros(2, 16),
    "temp": torch.zeros(()),
}


@pytest.fixture(autouse=True)
def presets(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", TINY)


def seed(config: SeedConfig = TINY) -> Seed:
    torch.manual_seed(0)
    return Seed(config).eval()


def pictures(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("config", [TINY, REVERSED, replace(TINY, reconstruct=False)], ids=["maps", "reversed", "bare"])
@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
def test_a_published_file_tells_its_variant_by_its_keys(tmp_path, config, wrap):
    model = seed(config)
    torch.save(wrap(model.state_dict() | EXTRA), tmp_path / "seed_quantizer.pt")
    found = Seed.from_pretrained(tmp_path / "seed_quantizer.pt", "tiny")
    assert found.config == config
    tokens = model.encode(pictures())
    assert torch.equal(found.encode(pictures()), tokens)
    assert torch.equal(found.embed(tokens), model.embed(tokens)) and found.embed(tokens).shape == (3, 6)


@pytest.mark.parametrize(
    ("spoil", "culprit"),
    [
        (lambda s: s | {"colour": torch.zeros(1)}, "colour"),
        (lambda s: {k: v for k, v in s.items() if k != "query_tokens"}, "query_tokens|neither|both"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("image_down.")}, "neither"),
        (lambda s: s | {"Reverse_Qformer.x": torch.zeros(1)}, "both"),
        (lambda s: s | {"ln_vision.weight": torch.zeros(3)}, "ln_vision.weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, spoil, culprit):
    torch.save(spoil(dict(seed().state_dict())), tmp_path / "seed.pt")
    with pytest.raises(VistokError, match=culprit):
        Seed.from_pretrained(tmp_path / "seed.pt", "tiny")


def test_a_file_of_unknown_name_needs_a_preset(tmp_path):
    torch.save(seed().state_dict(), tmp_path / "mine.pt")
    with pytest.raises(VistokError, match=r"preset.*SEED-2"):
        Seed.from_pretrained(tmp_path / "mine.pt")


def test_the_published_shape_has_the_published_keys():
    with torch.device("meta"):
        state = Seed(PRESETS["SEED-2"]).state_dict()
    expected = {
        "visual_encoder.pos_embed": (1, 257, 1408),
        "visual_encoder.blocks.38.attn.q_bias": (1408,),
        "visual_encoder.blocks.0.mlp.fc1.weight": (6144, 1408),
        "Qformer.bert.encoder.layer.10.crossattention.self.key.weight": (768, 1408),
        "Qformer.bert.encoder.layer.11.output_query.LayerNorm.weight": (768,),
        "quantize.embedding.weight": (8192, 32),
        "blocks.3.attn.qkv.bias": (2304,),
        "image_down.4.weight": (32, 128),
        "distill_image_proj.weight": (1024, 1024),
    }
    assert {key: tuple(state[key].shape) for key in expected} == expected
    assert "Qformer.bert.encoder.layer.1.crossattention.self.key.weight" not in state


@pytest.mark.parametrize("length", [1, 3, 8])
def test_first_tokens_do_not_depend_on_later_queries(length):
    model = seed()
    tokens = model.encode(pictures())
    assert torch.equal(model.encode(pictures(), length), tokens[:, :length])
    with torch.no_grad():
        model.query_tokens[:, length:] += 1.0
    assert torch.equal(model.encode(pictures())[:, :length], tokens[:, :length])


@pytest.mark.parametrize("length", [0, -1, 9])
def test_prefixes_that_it_has_not_are_refused(length):
    with pytest.raises(VistokError, match=f"1 to 8.*{length}"):
        seed().encode(pictures(), length)
    with pytest.raises(VistokError, match="8"):
        seed().embed(torch.zeros(1, 4, dtype=torch.long))


def test_half_precision_is_asked_for_by_name():
    """Two codes that half precision cannot tell apart: float32 finds the nearer, the reference the first."""
    model = seed(replace(TINY, codebook_size=2, code_dim=1))
    with torch.no_grad():
        model.quantize.embedding.weight.copy_(torch.tensor([[1.0], [1.01]]))
    latents = torch.full((1, 3, 1), 1.01)
    assert model.nearest(latents).tolist() == [[1, 1, 1]]
    assert model.nearest(latents, match_reference_fp16=True).tolist() == [[0, 0, 0]]


def test_without_an_unclip_pixels_are_refused_with_the_mend():
    model = seed()
    with pytest.raises(VistokError, match=r"embed.*--unclip"):
        model.decode(model.encode(pictures()))


@pytest.fixture(scope="module")
def unclip_folder(tmp_path_factory):
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

    folder = tmp_path_factory.mktemp("unclip")
    words = {c: i for i, c in enumerate(["<|startoftext|>", "<|endoftext|>", "a", "a</w>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.model_max_length = 8
    torch.manual_seed(0)
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    text = transformers.CLIPTextModel(transformers.CLIPTextConfig(vocab_size=8, max_position_embeddings=8, **small))
    eye = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(image_size=8, patch_size=4, projection_dim=6, **small)
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=4, block_out_channels=(8, 8), layers_per_block=1, cross_attention_dim=8, attention_head_dim=4,
        norm_num_groups=2, class_embed_type="projection", projection_class_embeddings_input_dim=12,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    pipeline = diffusers.StableUnCLIPImg2ImgPipeline(
        feature_extractor=transformers.CLIPImageProcessor(size=8, crop_size=8),
        image_encoder=eye,
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=6),
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=text,
        unet=unet,
        scheduler=diffusers.DDIMScheduler(),
        vae=diffusers.AutoencoderKL(
            block_out_channels=(8,) * 4,
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
    )
    pipeline.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def test_an_unclip_of_diffusers_paints_the_embedding(unclip_folder):
    model = seed()
    tokens = model.encode(pictures())
    model.unclip = UnClip.load(str(unclip_folder), steps=2)
    painted = model.decode(tokens)
    assert painted.shape[:2] == (3, 3) and bool(painted.isfinite().all())
    torch.testing.assert_close(model.decode(tokens[1:2]), painted[1:2], atol=1e-3, rtol=0)  # whatever its batch
    own = [torch.Generator().manual_seed(seed) for seed in (0, 0, 5)]
    again = model.decode(tokens, generator=own)  # of each picture's own seed
    torch.testing.assert_close(again[:2], painted[:2], atol=1e-3, rtol=0)
    assert not torch.allclose(again[2], painted[2], atol=1e-2)
    model.unclip.pipeline.image_normalizer.mean.data = torch.zeros(1, 5)
    with pytest.raises(VistokError, match=r"5 numbers.*6"):
        model.decode(tokens)


def test_an_unclip_that_is_none_is_refused(tmp_path):
    pytest.importorskip("diffusers")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(VistokError, match="unCLIP"):
        UnClip.load(str(tmp_path))


PAINTS = replace(TINY, pixels="vq-mini", pixel_layers=1, pixel_grid=4, pixel_steps=3)


def test_equal_tokens_paint_equal_pictures_unless_each_has_its_noise():
    model = seed(PAINTS)
    nn.init.normal_(model.quantize.embedding.weight)
    model.pixel_head.output.weight.data *= 50  # so that what it is told matters
    assert model.capabilities.stochastic_decode
    tokens = torch.randint(64, (2, 8), generator=torch.Generator().manual_seed(2)).repeat_interleave(2, 0)
    first, again, *other = model.decode(tokens)
    assert torch.equal(first, again) and not torch.equal(first, other[0])
    assert torch.allclose(first, model.decode(tokens[:1])[0], atol=1e-5)
    each = model.decode(tokens, generator=[torch.Generator().manual_seed(number) for number in range(4)])
    assert not torch.equal(each[0], each[1])
    alone = model.decode(tokens[1:2], generator=torch.Generator().manual_seed(1))
    assert torch.allclose(each[1], alone[0], atol=1e-5)
    with pytest.raises(VistokError, match="one each"):
        model.decode(tokens, generator=[torch.Generator()] * 3)


def test_codes_are_painted_by_what_is_sure(monkeypatch):
    """Of a head that always knows code 3 for the first place and is unsure of the rest, the first is decided first."""
    monkeypatch.setattr("vistok.tokenizers.seed_pixels.CHOICE", 0.0)
    model = seed(PAINTS)
    head, shown = model.pixel_head, []

    def sure_of_the_first(features, codes):
        shown.append(codes.clone())
        logits = torch.zeros(*codes.shape, head.mask_id)
        logits[:, 0, 3] = 100.0
        return logits

    head.forward = sure_of_the_first
    codes = head.paint(torch.zeros(1, 8, 16), head.draws(1, None))
    hidden = [int((each == head.mask_id).sum()) for each in shown]
    assert hidden == [16, 13, 8]  # the cosine's: 16 cos(pi / 6) and 16 cos(pi / 3)
    assert all(each[0, 0] == 3 for each in (*shown[1:], codes)) and (codes < head.mask_id).all()
    assert all(torch.equal(later[kept], each[kept]) for each, later in pairwise([*shown, codes])
               for kept in [each != head.mask_id])  # fmt: skip


@pytest.mark.parametrize("config", [{"pixel_steps": 0}, {"pixel_steps": 17}])
def test_steps_that_no_painting_has_are_refused(config):
    with pytest.raises(VistokError, match="pixel_steps"):
        Seed.untrained(replace(PAINTS, **config))


def test_load_tokenizer_reads_a_folder(tmp_path):
    seed().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert type(loaded.tokenizer) is Seed and loaded.tokenizer.config == TINY
