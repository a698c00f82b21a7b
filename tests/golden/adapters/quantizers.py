"""Quantizers: FSQ, LFQ and BSQ, EMA updates, residual and multi-scale quantization."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.tokenizers.quantizers import (
    FSQ,
    BinaryQuantizer,
    EMAQuantizer,
    MultiScaleQuantizer,
    PhiConvs,
    ResidualQuantizer,
    VectorQuantizer,
)
from vistok.zoo.checkpoint import load_strict

SYSTEM = "quantizers"


def fsq(case: Case) -> None:
    quantizer = FSQ(case.config["levels"], case.config["eps"])
    assert quantizer.size == case.config["codebook_size"]
    assert quantizer.basis.tolist() == case.config["basis"]
    z = case.inputs["z"].requires_grad_()
    quantized = quantizer(z)
    (quantized.latents * case.inputs["grad_weight"]).sum().backward()
    case.close(quantized.latents, "codes")
    case.close(quantized.indices, "indices")
    case.close(quantizer.indices(z), "indices")
    case.close(z.grad, "grad_z")
    case.close(quantizer.codes(case.inputs["ids"]), "codes_of_ids")
    assert torch.equal(quantizer.index_of(quantizer.codes(case.inputs["ids"])), case.inputs["ids"])


def binary(case: Case) -> None:
    config = case.config
    quantizer = BinaryQuantizer(
        bits=config["codebook_size"].bit_length() - 1,
        spherical=config["spherical"],
        inv_temperature=config["inv_temperature"],
        entropy=config["entropy_loss_weight"],
        diversity=config["diversity_gamma"],
        commitment=config["commitment_loss_weight"],
    )
    assert quantizer.size == config["codebook_size"]
    x = case.inputs["x"].requires_grad_()
    quantized = quantizer(x.movedim(-1, 1))
    quantized.loss.backward()
    single, of_mean = quantizer.entropies(quantizer._flatten(x.detach().movedim(-1, 1)))
    commitment = quantized.commitment_loss / quantizer.commitment if quantizer.commitment else torch.zeros(())
    case.close(quantized.latents.movedim(1, -1), "quantized")
    case.close(quantized.indices, "indices")
    case.close(quantized.loss[None], "aux_loss")
    case.close(single[None], "per_sample_entropy")
    case.close(of_mean[None], "batch_entropy")
    case.close(commitment[None], "commitment")
    case.close(x.grad, "grad_x")
    case.close(quantizer.codes(case.inputs["ids"]), "codes_of_ids")


def vq_ema(case: Case) -> None:
    config = case.config
    assert config["threshold_ema_dead_code"] == 0
    quantizer = EMAQuantizer(
        config["codebook_size"],
        config["dim"],
        decay=config["decay"],
        cosine=config["use_cosine_sim"],
        commitment=config["commitment_weight"],
        smoothing=config["eps"],
    )
    state = {"codebook": case.inputs["embed"], "counts": case.inputs["cluster_size"], "sums": case.inputs["embed_avg"]}
    load_strict(quantizer, state, case.id)
    quantized = quantizer.train()(case.inputs["x"])
    case.close(quantized.latents, "quantized")
    case.close(quantized.indices, "indices")
    case.close(quantized.commitment_loss[None], "commit_loss")
    case.close(quantizer.codebook, "embed")
    case.close(quantizer.counts, "cluster_size")
    case.close(quantizer.sums, "embed_avg")


def _with_codes(codebook: torch.Tensor, l2_norm: bool) -> VectorQuantizer:
    quantizer = VectorQuantizer(*codebook.shape, l2_norm=l2_norm, usage_window=0)
    load_strict(quantizer, {"embedding.weight": codebook}, "codebook")
    return quantizer.eval()


@torch.no_grad()
def residual_vq(case: Case) -> None:
    codebooks = case.inputs["codebooks"]
    assert list(codebooks.shape) == [case.config[k] for k in ("num_quantizers", "codebook_size", "dim")]
    quantizer = ResidualQuantizer(_with_codes(codebook, l2_norm=False) for codebook in codebooks).eval()
    z = case.inputs["x"].movedim(-1, 1)
    quantized = quantizer(z)
    case.close(quantized.indices, "indices")
    case.close(quantizer.indices(z), "indices")
    case.close(quantized.latents.movedim(1, -1), "quantized")
    case.close(quantizer.codes(quantized.indices), "quantized")
    case.close(quantizer.level_codes(quantized.indices), "all_codes")
    prefix = "quantized_first"
    for name in [name for name in case.outputs if name.startswith(prefix)]:
        case.close(quantizer.codes(quantized.indices[..., : int(name.removeprefix(prefix))]), name)


@torch.no_grad()
def multiscale(case: Case) -> None:
    config = case.config
    phi = None
    if config["phi"]:
        count = len([name for name in case.weights if name.endswith(".weight")])
        phi = PhiConvs(config["dim"], count, config["quant_resi"])
        load_strict(phi, {name.removeprefix("phi."): weight for name, weight in case.weights.items()}, case.id)
    quantizer = MultiScaleQuantizer(
        _with_codes(case.inputs["codebook"], config["l2_norm"]),
        config["scales"],
        phi,
        config["downsample"],
        config["upsample"],
    )
    features = case.inputs["features"]
    indices = quantizer.indices(features)
    case.close(indices, "indices")
    quantized = quantizer(features)
    case.close(quantized.indices, "indices")
    maps = quantizer.partial_maps(indices)
    for scale, partial in enumerate(maps):
        case.close(partial, f"f_hat_scale{scale}")
    case.close(quantized.latents, f"f_hat_scale{len(maps) - 1}")
    case.close(features - maps[-1], "residual")


ADAPTERS = {
    "fsq": fsq,
    "binary": binary,
    "vq_ema": vq_ema,
    "residual_vq": residual_vq,
    "multiscale": multiscale,
}
