"""SEED: the causal Q-Former's output, latents, ids, the loss of the codes, and the image embedding."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.tokenizers.seed import Seed, variant
from vistok.tokenizers.seed_config import SeedConfig
from vistok.zoo.checkpoint import load_strict

SYSTEM = "seed"


@torch.no_grad()
def forward(case: Case) -> None:
    c = case.config
    assert c.get("act", "gelu (erf)").startswith("gelu")
    feed_forward = case.weights["Qformer.bert.encoder.layer.0.intermediate_query.dense.weight"]
    config = SeedConfig(
        tower="none",
        tower_width=c["encoder_width"],
        width=c["hidden"],
        layers=c["layers"],
        heads=c["heads"],
        hidden=len(feed_forward),
        cross_every=c["cross_attention_freq"],
        num_tokens=c["num_query_token"],
        codebook_size=c["codebook_size"],
        code_dim=c["codebook_dim"],
        decode_layers=c["decode_depth"],
        decode_heads=c["decode_heads"],
        image_down=tuple(c.get("image_down_dims") or ()),
        embed_dim=c["image_features_dim"],
        norm_eps=c["layer_norm_eps"],
        block_norm_eps=c["block_layer_norm_eps"],
    )
    model = Seed(variant(config, case.weights))
    load_strict(model, case.weights, case.id, Seed.dropped_keys)
    model.eval()
    features = case.inputs["visual_features"]
    assert features.shape[1] == c["n_visual_tokens"]

    states = model.states(features)
    case.close(states, "query_output")
    latents = model.latents(states)
    case.close(latents, "pre_quant")
    tokens = model.encode(None, features=features)
    case.close(tokens, "indices")
    for length in (1, c["num_query_token"] // 2):
        assert torch.equal(model.encode(None, length, features), tokens[:, :length])
    quantized = model.quantize(latents.movedim(-1, 1))
    case.close((quantized.codebook_loss + quantized.commitment_loss)[None], "vq_loss")
    case.close(model.embed(tokens), "image_embed")


ADAPTERS = {"forward": forward}
