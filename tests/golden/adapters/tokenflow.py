"""TokenFlow: indices over scales, both code maps, both decoders, prefixes of scales, losses."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.tokenizers.tokenflow import TokenFlow
from vistok.tokenizers.tokenflow_config import TokenFlowConfig
from vistok.zoo.checkpoint import load_strict

SYSTEM = "tokenflow"


@torch.no_grad()
def codec(case: Case) -> None:
    c = case.config
    assert c["codebook_l2_norm"]
    config = TokenFlowConfig(
        backbone="none",
        backbone_width=c["semantic_width"],
        image_size=c["image_size"],
        codebook_size=c["codebook_size"],
        semantic_dim=c["semantic_code_dim"],
        pixel_dim=c["codebook_embed_dim"],
        commitment=c["commit_loss_beta"],
        pixel_weight=c["pixel_distance_weight"],
        scales=tuple(c["scales"]),
        channels=c["ch"],
        channel_mult=tuple(c["ch_mult"]),
        res_blocks=c["num_res_blocks"],
        z_channels=c["z_channels"],
        decoder_channels=c["ch"],
        decoder_res_blocks=c["num_res_blocks"],
        semantic_width=case.weights["decoder_vqkd.cls_token"].shape[-1],
        semantic_depth=c["semantic_decoder_depth"],
        semantic_heads=c["semantic_decoder_heads"],
        semantic_out=c["decoder_out_dim"],
    )
    model = TokenFlow(config)
    load_strict(model, case.weights, case.id, TokenFlow.dropped_keys)
    model.eval()
    images, features = case.inputs["image"], case.inputs["semantic_features"]

    z = model.latents(images, features)
    case.close(z, "pre_quant")
    tokens = model.encode(images, features)
    case.close(tokens, "indices")
    trained = model(images, features)
    case.close(trained.quantized.indices, "indices")
    case.close(trained.quantized.latents[:, : config.semantic_dim], "quant_semantic")
    case.close(trained.quantized.latents[:, config.semantic_dim :], "quant_pixel")
    case.close(trained.images, "image")
    case.close(trained.semantics, "semantic_recon")
    steps = [step for step, _ in model.multiscale.scale_steps(z)]
    losses = torch.stack([torch.stack([step.codebook_loss, step.commitment_loss]) for step in steps])
    case.close(losses, "vq_commit_loss_per_scale")
    torch.testing.assert_close(
        torch.stack([trained.quantized.codebook_loss, trained.quantized.commitment_loss]), losses.mean(0)
    )
    case.close(model.decode(tokens), "decode_code_image")
    case.close(model.semantics(tokens), "decode_code_semantic")
    case.close(model.decode(tokens, model.multiscale.lengths[-2]), "decode_code_image_without_last_scale")


ADAPTERS = {"codec": codec}
