"""Larger pictures from the codes of a VQ tokenizer."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F

import vistok
from tests.train.tiny import tiny
from vistok.data.scenes import render, sample_scenes
from vistok.errors import VistokError
from vistok.tokenizers.load import load_tokenizer
from vistok.tokenizers.vq import VQTokenizer
from vistok.tokenizers.vq_upscaled import UpscaledVQ
from vistok.train.tasks import build_task
from vistok.zoo import read_card


@pytest.fixture(scope="module")
def pictures():
    return render(sample_scenes(3, 5), 128)


def test_a_new_one_repeats_the_pixels_of_its_base(pictures):
    large, base = UpscaledVQ().eval(), VQTokenizer.from_pretrained("vq-mini")
    tokens = large.encode(pictures)
    assert torch.equal(tokens, base.encode(F.avg_pool2d(pictures, 2)))
    expected = base.decode(tokens).repeat_interleave(2, -1).repeat_interleave(2, -2)
    assert torch.allclose(large.decode(tokens), expected, atol=1e-5)


def test_only_its_own_weights_are_trained_and_saved(tmp_path, pictures):
    large = UpscaledVQ()
    large(large.encode(pictures)).square().mean().backward()
    assert all(weight.grad is not None for weight in large.parameters())
    assert all(weight.grad is None for weight in large.base.parameters())
    large.save_pretrained(tmp_path)
    assert not any("base" in key for key in large.state_dict())
    loaded = load_tokenizer(str(tmp_path)).tokenizer
    tokens = loaded.encode(pictures)
    assert torch.equal(loaded.decode(tokens), large.decode(tokens))
    assert loaded.double().base.quantize.embedding.weight.dtype == torch.float64


def test_generators_draw_larger_pictures_of_the_same_codes(tmp_path):
    UpscaledVQ().save_pretrained(tmp_path)
    small = vistok.pipeline("llamagen", device="cpu")
    large = vistok.pipeline("llamagen", tokenizer=tmp_path, device="cpu")
    first, second = (pipe("a red circle", seed=3) for pipe in (small, large))
    assert torch.equal(first.tokens, second.tokens)
    assert large.size == 128 and second.images[0].size == (128, 128) and first.images[0].size == (64, 64)


def test_a_base_is_not_fetched(tmp_path):
    UpscaledVQ().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"family": "vq_upscaled", "base": "owner/name", "scale": 2}))
    with pytest.raises(VistokError, match=r"owner/name.*config\.json"):
        load_tokenizer(str(tmp_path))


def test_what_its_recipe_exports_loads_with_its_card(tmp_path):
    recipe = tiny("vq-mini-128", steps=1)
    build_task(recipe).export(tmp_path, {"psnr": 1.0}, 1)
    assert read_card(tmp_path).parts == {"codes": "vq-mini"}
    assert isinstance(load_tokenizer(str(tmp_path)).tokenizer, UpscaledVQ)
