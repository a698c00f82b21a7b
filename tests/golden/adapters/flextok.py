"""FlexTok: causal register encoder, decoder velocity, sampling with both kinds of guidance, and its embeddings."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.tokenizers.flextok import FlexTok
from vistok.tokenizers.flextok_config import FlexTokConfig, from_published
from vistok.tokenizers.flextok_layers import sincos_2d, time_features
from vistok.tokenizers.flextok_networks import Encoder
from vistok.tokenizers.flow import FlowSampling, NormalizedGuidance, classifier_free
from vistok.zoo.checkpoint import load_strict

SYSTEM = "flextok"


def _config(case: Case) -> FlexTokConfig:
    c = case.config
    assert c["max_timestep"] == 1.0 and c["time_max_period"] == 256
    return FlexTokConfig(
        (c["enc_dim"], c["enc_depth"]),
        (c["dec_dim"], c["dec_depth"]),
        head_dim=c["head_dim"],
        registers=c["n_registers"],
        levels=tuple(c["fsq_levels"]),
        latent_channels=c["vae_channels"],
        latent_size=c["latent_grid"],
        patch=c["patch"],
        time_features=c["frequency_embedding_size"],
        groups=c["adaLN_expansion"],
        modulated_head=c["head_has_adaLN"],
        repa_layer=c["repa_layer_index"],
        vae=False,
    )


def _check_reader(case: Case, config: FlexTokConfig) -> None:
    """The shapes of the weights and a few plain values tell the same architecture."""
    tree = {
        "vae": {"latent_channels": config.latent_channels},
        "regularizer": {"_target_": "flextok.regularizers.quantize_fsq.FSQ", "levels": list(config.levels)},
        "encoder": {"module_dict": {"enc_transformer": {"head_dim": config.head_dim}}},
    }
    read = from_published(tree, {key: value.shape for key, value in case.weights.items()})
    for name in (
        "encoder",
        "decoder",
        "registers",
        "latent_size",
        "patch",
        "time_features",
        "groups",
        "modulated_head",
    ):
        assert getattr(read, name) == getattr(config, name), name


@torch.no_grad()
def codec(case: Case) -> None:
    config = _config(case)
    _check_reader(case, config)
    model = FlexTok(config)
    load_strict(model, case.weights, case.id)
    model.eval()
    maps, keep = case.inputs["latents"], case.inputs["keep_k"]
    case.equal(Encoder.mask(config.grid**2, config.registers).to(torch.uint8), "enc_mask")

    z = model.encoder(maps)
    case.close(z, "pre_quant")
    quantized = model.regularizer(z.transpose(1, 2))
    case.close(quantized.indices, "tokens")
    case.close(quantized.latents.transpose(1, 2), "quants")
    tokens = model.regularizer.indices(z.transpose(1, 2))
    case.close(tokens, "tokens")
    for length in {1, *keep.tolist()}:  # encoding a prefix is exact
        assert torch.equal(
            model.regularizer.indices(model.encoder(maps, length).transpose(1, 2)), case.outputs["tokens"][:, :length]
        )

    codes = model.regularizer.codes(tokens)
    noised, times = case.inputs["noised"], case.inputs["timestep"]
    case.close(model.decoder.module_dict["dec_time_embedder"](times), "temb")
    velocity, features = model.decoder.velocity_and_features(noised, times, codes, keep)
    case.close(velocity, "velocity_cond")
    case.close(features, "repa_layer_patches")
    null = torch.ones(len(maps), dtype=torch.bool)
    case.close(model.decoder(noised, times, codes[:, :0], null=null), "velocity_uncond")
    for guidance in case.config["guidance"]:
        sampling = FlowSampling(
            case.config["sampling_steps"], guidance["scale"], guidance["normalised"], **case.config["apg"]
        )
        name = f"sample_g{guidance['scale']}_{'apg' if guidance['normalised'] else 'cfg'}"
        case.close(model.sample_maps(codes, keep, sampling, noise=case.inputs["noise"]), name)


def guidance_and_embeddings(case: Case) -> None:
    c = case.config
    published = NormalizedGuidance(c["momentum"], c["eta"], c["norm_threshold"])
    plain = NormalizedGuidance(momentum=0.0, eta=0.5, norm_threshold=0.0)
    for step in range(c["steps"]):
        pair = case.inputs[f"cond{step}"], case.inputs[f"uncond{step}"], c["guidance_scale"]
        case.close(classifier_free(*pair), f"cfg{step}")
        case.close(published(*pair), f"apg{step}")
        case.close(plain(*pair), f"apg_eta05_nomom{step}")
    features = case.outputs["time_features"]
    case.close(time_features(case.inputs["t"], features.shape[1]), "time_features")
    for name in [name for name in case.outputs if name.startswith("sincos_")]:
        _, width, height, columns = case.outputs[name].shape
        case.close(sincos_2d(width, height, columns), name)


ADAPTERS = {"codec": codec, "guidance_and_embeddings": guidance_and_embeddings}
