"""The embedded models in LlamaGen's own code: same logits, codes and greedy tokens.

Set ``VISTOK_LLAMAGEN`` to a checkout of FoundationVision/LlamaGen; without it these tests are skipped, and counted.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from dataclasses import asdict, fields
from pathlib import Path

import pytest
import torch

import vistok
from vistok.data.scenes import render, sample_scenes
from vistok.samplers import SamplingParams

FOLDER = os.environ.get("VISTOK_LLAMAGEN")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="VISTOK_LLAMAGEN names no checkout of LlamaGen")
PROMPTS = ["a red circle left of a blue square", "three yellow rings"]


@pytest.fixture(scope="module")
def pipe():
    pipe = vistok.pipeline("llamagen", device="cpu")
    pipe.model.float()
    return pipe


def module(monkeypatch_path: str) -> types.ModuleType:
    """A module of the checkout, by its path."""
    path = Path(FOLDER) / monkeypatch_path
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded  # which its dataclasses ask for
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def theirs(pipe):
    """Their transformer with our weights."""
    sys.path.insert(0, FOLDER)
    try:
        reference = module("autoregressive/models/gpt.py")
    finally:
        sys.path.remove(FOLDER)
    known = {field.name for field in fields(reference.ModelArgs)}
    shape = {name: value for name, value in asdict(pipe.model.config).items() if name in known}
    model = reference.Transformer(reference.ModelArgs(**shape)).eval()
    null = pipe.model.cls_embedding.uncond_embedding
    model.cls_embedding.uncond_embedding = torch.zeros_like(null)  # theirs always has 120 tokens
    model.load_state_dict(pipe.model.state_dict(), strict=True)
    return model


@torch.no_grad()
def test_logits_of_a_whole_sequence_are_theirs(pipe, theirs):
    condition = pipe.condition(PROMPTS)
    tokens = pipe(PROMPTS, seed=0).tokens[:, :-1]
    mask = pipe.model._full_mask(torch.zeros(2, condition.values.shape[1] + 255, 1), condition.mask)
    for layer in theirs.layers:
        layer.attention.kv_cache = None
    prefix = pipe.model.prefix
    found, _ = theirs(tokens, cond_idx=condition.values, input_pos=torch.arange(prefix + 255), mask=mask)
    ours = pipe.model(tokens, condition.values, condition.mask)
    assert (ours - found[:, prefix - 1 :]).abs().max() <= 3.1e-5


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_greedy_tokens_are_theirs(pipe, theirs, guidance):
    generate = module("autoregressive/models/generate.py").generate
    condition = pipe.condition(PROMPTS[:1])
    found = generate(
        theirs, condition.values, 256, condition.mask, cfg_scale=guidance, temperature=1.0, top_k=1, sample_logits=False
    )
    ours = pipe(PROMPTS[0], params=SamplingParams(guidance, greedy=True)).tokens
    assert torch.equal(found.long(), ours)


@torch.no_grad()
def test_codes_and_images_are_theirs(pipe):
    reference, config = module("tokenizer/tokenizer_image/vq_model.py"), pipe.tokenizer.config
    args = reference.ModelArgs(
        codebook_size=config.codebook_size,
        codebook_embed_dim=config.codebook_dim,
        encoder_ch_mult=list(config.channel_mult),
        decoder_ch_mult=list(config.channel_mult),
        z_channels=config.z_channels,
    )
    model = reference.VQModel(args)
    parts = {"ch": config.channels, "num_res_blocks": config.res_blocks, "z_channels": config.z_channels}
    model.encoder = reference.Encoder(ch_mult=args.encoder_ch_mult, **parts)
    model.decoder = reference.Decoder(ch_mult=args.decoder_ch_mult, **parts)
    missing, left = model.load_state_dict(pipe.tokenizer.state_dict(), strict=False)
    assert not left and all("codebook_used" in name for name in missing)
    model.eval()
    images = render(sample_scenes(8, 5), 64)
    codes = pipe.tokenizer.encode(images)
    assert torch.equal(model.encode(images)[2][2].view(codes.shape), codes)
    shape = [8, config.codebook_dim, 16, 16]
    assert torch.allclose(model.decode_code(codes, shape), pipe.tokenizer.decode(codes), atol=1e-4)
