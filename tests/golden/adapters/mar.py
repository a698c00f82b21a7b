"""MAR: the head's process and network, the autoencoder, the forward pass, and full sampling."""

from __future__ import annotations

from dataclasses import fields

import torch

from tests.golden.case import Case
from vistok.models.mar import MAR, DiffLoss, Diffusion, HeadNetwork, MARConfig
from vistok.models.mar.head import time_features
from vistok.samplers.continuous.head import HeadChain, draw_path
from vistok.samplers.continuous.mar import GuidedMAR, paint
from vistok.samplers.continuous.schedule import MaskSchedule, ranks
from vistok.tokenizers.kl import KLAutoencoder, KLConfig
from vistok.zoo.checkpoint import load_strict

SYSTEM = "mar"


def strict(module, case: Case, prefix: str = ""):
    weights = {k.removeprefix(prefix): v for k, v in case.weights.items() if k.startswith(prefix)}
    load_strict(module, weights, type(module).__name__)
    return module.eval()


def build_mar(config: dict, case: Case, prefix: str = "") -> MAR:
    known = {f.name for f in fields(MARConfig)}
    return strict(MAR(MARConfig(**{k: v for k, v in config.items() if k in known})), case, prefix)


def build_head(case: Case) -> DiffLoss:
    c = case.config
    head = DiffLoss(c["target_channels"], c["z_channels"], c["width"], c["depth"])
    prefixed = any(key.startswith("net.") for key in case.weights)
    strict(head if prefixed else head.net, case)
    return head.eval()


def chain_of(case: Case, tokens: int) -> HeadChain:
    c = case.config
    guidance = None if c["cfg"] == 1.0 else torch.full((tokens,), c["cfg"])
    return HeadChain(
        build_head(case).net, Diffusion(c["num_sampling_steps"]), case.inputs["z"], guidance, c["temperature"]
    )


def schedule(case: Case) -> None:
    for name in case.config["respacings"]:
        prefix = name.replace(",", "_") if name else "full1000"
        process = Diffusion(name, case.config["diffusion_steps"])
        case.equal(process.timesteps, f"{prefix}.timestep_map")
        for table in (
            "betas",
            "alphas_cumprod",
            "posterior_variance",
            "posterior_log_variance_clipped",
            "posterior_mean_coef1",
            "posterior_mean_coef2",
            "sqrt_recip_alphas_cumprod",
            "sqrt_recipm1_alphas_cumprod",
        ):
            case.close(getattr(process, table), f"{prefix}.{table}")


@torch.no_grad()
def simple_mlp(case: Case) -> None:
    c = case.config
    net = HeadNetwork(c["in_channels"], c["z_channels"], c["model_channels"], c["num_res_blocks"])
    assert c["out_channels"] == 2 * c["in_channels"]
    strict(net, case)
    x, t, z = (case.inputs[k] for k in "xtc")
    case.close(time_features(t), "time_freq")
    case.close(net(x, t, z), "net")
    # The reference's guided call: one state (the first half), both halves of conditions.
    half = len(x) // 2
    out = net(torch.cat([x[:half], x[:half]]), t, z)
    eps, v = out.chunk(2, dim=-1)
    guided = eps[half:] + c["cfg_scale"] * (eps[:half] - eps[half:])
    case.close(torch.cat([torch.cat([guided, guided]), v], dim=-1), "net_cfg")


@torch.no_grad()
def diffloss_sample(case: Case) -> None:
    start, steps = case.inputs["init_noise"], case.inputs["step_noise"]
    path = draw_path(chain_of(case, len(start)), torch.cat([steps.flip(0), start[None]]))
    case.close(path.value, "sample")
    case.close(torch.cat([path.states[:-1].flip(0), path.value[None]]), "trajectory")


@torch.no_grad()
def diffloss_train(case: Case) -> None:
    head, i = build_head(case), case.inputs
    x0, z, t, noise, mask = i["x_start"], i["z"], i["t"], i["noise"], i["mask"]
    case.close(head.process.q_sample(x0, t, noise), "x_t")
    error, bits = head.terms(x0, z, t, noise)
    case.close(error, "mse")
    case.close(bits, "vb")
    rows = head(x0, z, t, noise)
    case.close(rows, "loss_per_row")
    case.close((rows * mask).sum() / mask.sum(), "loss")
    process, step = Diffusion(case.config["num_sampling_steps"]), i["t_spaced"]
    x = case.outputs["x_t"]
    eps, v = head.net(x, process.timesteps[step], z).chunk(2, dim=-1)
    law = process.transition(x, step, eps, v)
    case.close(law.mean, "mean")
    case.close(law.log_variance, "log_variance")
    case.close(process.clean(x, step, eps), "pred_xstart")


@torch.no_grad()
def kl_vae(case: Case) -> None:
    c = case.config
    sides = [c["resolution"] >> level for level in range(len(c["ch_mult"]))]
    levels = {
        name: tuple(i for i, side in enumerate(sides) if side in c[f"{name}_attn_resolutions"])
        for name in ("encoder", "decoder")
    }
    config = KLConfig(
        channels=c["ch"],
        channel_mult=tuple(c["ch_mult"]),
        res_blocks=c["num_res_blocks"],
        z_channels=c["z_channels"],
        encoder_attention=levels["encoder"],
        decoder_attention=levels["decoder"],
    )
    model = strict(KLAutoencoder(config), case)
    posterior = model.posterior(case.inputs["image"])
    case.close(model.moments(case.inputs["image"]), "moments")
    case.close(posterior.mean, "mean")
    case.close(posterior.logvar, "logvar")
    case.close(posterior.std, "std")
    case.close(posterior.kl(), "kl")
    case.close(model.decode_latents(case.inputs["z"]), "decoded")


def mask_schedule(case: Case) -> None:
    for each in case.config["cases"]:
        length, iterations, cfg = each["seq_len"], each["num_iter"], each["cfg"]
        plan = MaskSchedule(length, iterations)
        case.equal(torch.tensor(plan.published), f"mask_len_{length}_{iterations}")
        scales = [1 + (cfg - 1) * (length - n) / length for n in plan.published]
        case.close(torch.tensor(scales), f"cfg_{length}_{iterations}")
        if len(plan) == iterations:
            case.close(torch.tensor(plan.guidance(cfg, "linear")), f"cfg_{length}_{iterations}")


@torch.no_grad()
def model_forward(case: Case) -> None:
    model, i = build_mar(case.config, case), case.inputs
    mask = i["mask"].bool()
    tokens = model.own_tokens(i["latents"])
    case.close(tokens, "tokens")
    case.close(model.image_tokens(tokens), "unpatchified")
    features = model.encode(tokens, mask, model.condition(i["labels"]))
    case.close(features, "encoder")
    case.close(model.decode(features, mask), "z")
    case.close(model(i["latents"], i["labels"], mask, i["t"], i["noise"]), "loss")


@torch.no_grad()
def sample(case: Case) -> None:
    c, i = case.config, case.inputs
    model = build_mar(c, case)
    plan = MaskSchedule(model.config.seq_len, c["num_iter"])
    guided = GuidedMAR(model, i["labels"], Diffusion(c["num_sampling_steps"]), c["cfg_scale"] != 1.0, c["temperature"])
    noise = torch.cat([i["step_noise"].flip(2), i["init_noise"][:, :, None]], dim=2)  # [B, L, T + 1, D]
    rank = ranks(i["orders"])
    masks = torch.stack([rank < hidden for hidden, _, _ in plan.steps])
    if len(plan) == c["num_iter"]:
        case.equal(masks, "masks")
    tokens = paint(
        guided, plan, plan.guidance(c["cfg_scale"], c["cfg_schedule"]), rank, lambda b, p: noise[b, p].transpose(0, 1)
    )
    case.close(model.image_tokens(tokens), "latents")


ADAPTERS = {
    "diffusion_schedule": schedule,
    "simple_mlp": simple_mlp,
    "diffloss_sample": diffloss_sample,
    "diffloss_train": diffloss_train,
    "kl_vae": kl_vae,
    "mask_schedule": mask_schedule,
    "model_forward": model_forward,
    "sample": sample,
}
