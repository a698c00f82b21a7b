"""TiTok with a direct pixel decoder, quantized and continuous, and the proxy codes of the first TiTok."""

from __future__ import annotations

import torch
from einops import rearrange

from tests.golden.case import Case
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from vistok.tokenizers.posterior import Posterior
from vistok.tokenizers.titok import TiTok
from vistok.tokenizers.titok_config import TiTokConfig
from vistok.zoo.checkpoint import load_strict

SYSTEM = "titok"


def _model(case: Case) -> TiTok:
    c = case.config
    shape = (c["width"], c["layers"], c["heads"])
    config = TiTokConfig(
        shape,
        shape,
        num_tokens=c["num_latent_tokens"],
        codebook_size=c["codebook_size"],
        token_size=c["token_size"],
        l2_norm=c["use_l2_norm"],
        commitment=c["commitment_cost"],
        legacy=c["is_legacy"],
        mode=c["quantize_mode"],
        pixel_decoder=c["finetune_decoder"],
        image_size=c["image_size"],
        patch_size=c["patch_size"],
    )
    model = TiTok(config)
    load_strict(model, case.weights, case.id)
    return model.eval()


@torch.no_grad()
def v2_vq(case: Case) -> None:
    model = _model(case)
    images = case.inputs["image"] * 2 - 1
    case.close(model.latents(images), "pre_quant")
    picture, quantized = model(images)
    case.close(quantized.indices, "indices")
    case.close(model.encode(images)[:, None], "indices")
    case.close(quantized.latents, "z_quantized")
    case.close(quantized.codebook_loss[None], "codebook_loss")
    case.close(quantized.commitment_loss[None], "commitment_loss")
    case.close((picture + 1) / 2, "image")
    case.close((model.decode(model.encode(images)) + 1) / 2, "image")


@torch.no_grad()
def v2_vae(case: Case) -> None:
    model = _model(case)
    images = case.inputs["image"] * 2 - 1
    case.close(model.latents(images), "pre_quant")
    posterior = Posterior.of(model.latents(images))
    sample = posterior.sample(case.inputs["noise"])
    case.close(posterior.mean, "mean")
    case.close(posterior.logvar, "logvar")
    case.close(posterior.kl_terms().sum((1, 2)), "kl")
    case.close(sample, "sample")
    case.close((model.paint(rearrange(sample, "b c 1 n -> b n c")) + 1) / 2, "image")
    case.close((model(images, noise=case.inputs["noise"])[0] + 1) / 2, "image")
    case.close((model.decode(model.encode(images)) + 1) / 2, "image_from_mean")


@torch.no_grad()
def proxy_vqgan(case: Case) -> None:
    c = case.config
    model = MaskGITVQGAN(
        MaskGITVQGANConfig(
            c["num_embeddings"], c["z_channels"], c["hidden_channels"], tuple(c["channel_mult"]), c["num_res_blocks"]
        )
    )
    load_strict(model, case.weights, case.id)
    model.eval()
    images = case.inputs["image"] * 2 - 1
    tokens = model.encode(images)
    assert tokens.shape[-1] == c["resolution"] // model.config.downsample
    case.close(model.encoder(case.inputs["image"]), "hidden")
    case.close(tokens.flatten(1), "codes")
    case.close((model.decode(tokens) + 1) / 2, "image_unclamped")


ADAPTERS = {"v2_vq": v2_vq, "v2_vae": v2_vae, "proxy_vqgan": proxy_vqgan}
