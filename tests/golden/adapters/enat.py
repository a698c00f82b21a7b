"""ENAT: network with and without re-use, sampling, schedules, training masks and tokenizer."""

from __future__ import annotations

from dataclasses import fields

import torch

from tests.golden.case import Case
from vistok.models.enat import ENAT, ENATConfig
from vistok.models.interface import Condition
from vistok.samplers.masked.sampler import GuidedMasked, fill
from vistok.samplers.masked.schedule import MaskPlan
from vistok.tokenizers.maskgit_vqgan import MaskGITVQGAN, MaskGITVQGANConfig
from vistok.train.tasks.masked import IGNORED, SMOOTHING, hide, masked_loss
from vistok.zoo.checkpoint import load_strict

SYSTEM = "enat"


def build(case: Case) -> ENAT:
    known = {f.name for f in fields(ENATConfig)}
    config = ENATConfig(**{k: v for k, v in case.config.items() if k in known})
    assert (config.seq_len, config.codebook_size) == (case.config["seq_len"], case.config["mask_id"])
    model = ENAT(config)
    load_strict(model, case.weights, "ENAT", ENAT.dropped_keys)
    return model.eval()


@torch.no_grad()
def forward(case: Case) -> None:
    model, labels = build(case), case.inputs["class"][:, 0]
    names = sorted(name for name in case.inputs if name.startswith("ids"))
    chained, alone = None, {}
    for name in names:
        number, codes = name.removeprefix("ids"), case.inputs[name]
        features, alone[name] = model.features(codes, labels, None)
        case.close(features, f"feat{number}_noreuse")
        case.close(model(codes, labels), f"logits{number}_noreuse")
        logits, _ = model.predict(codes, labels, chained)
        features, chained = model.features(codes, labels, chained)
        case.close(features, f"feat{number}_reuse")
        case.close(logits, f"logits{number}_reuse")
    case.close(model(case.inputs[names[-1]], labels, alone[names[1]]), "logits_skip")


def plan_of(c: dict) -> MaskPlan:
    return MaskPlan(
        c["seq_len"], c["steps"], guidance=1 + c["cfg_scale"], annealed=c["samp_temp"], choice=c["mask_temp"]
    )


@torch.no_grad()
def generate(case: Case) -> None:
    model, i, plan = build(case), case.inputs, plan_of(case.config)
    guided = GuidedMasked(model, Condition(i["labels"]), plan.guidance > 1)
    codes = torch.full((len(i["labels"]), plan.hidden), model.mask_id)
    fed, drawn = [], []

    def watch(before, after):
        fed.append(before)
        drawn.append(after)

    codes, step_of = fill(
        guided,
        plan,
        codes,
        lambda step, logp, temperature: (logp / temperature + i["token_gumbel"][step]).argmax(-1),
        lambda step: i["confidence_gumbel"][step],
        watch=watch,
    )
    case.equal(torch.stack(fed), "ids_in")
    case.equal(torch.stack(drawn), "sampled")
    case.equal(model.image_tokens(codes), "final")
    assert int(step_of.min()) >= 1 and int(step_of.max()) == len(plan)


def schedule(case: Case) -> None:
    for each in case.config["cases"]:
        plan, name = plan_of(each), f"{each['seq_len']}_{each['steps']}"
        case.equal(torch.tensor([step.hidden for step in plan]), f"n_masked_{name}")
        case.close(torch.tensor([step.guidance - 1 for step in plan], dtype=torch.float64), f"cfg_{name}")
        case.close(torch.tensor([step.choice for step in plan], dtype=torch.float64), f"mask_temp_{name}")
        case.close(torch.tensor([step.temperature for step in plan], dtype=torch.float64), f"samp_temp_{name}")


def train_mask(case: Case) -> None:
    c, i = case.config, case.inputs
    assert c["label_smoothing"] == SMOOTHING
    mask = hide(i["u"], c["mask_ratio"])
    labels = i["x0"].masked_fill(~mask, IGNORED)
    case.equal(labels, "labels")
    case.equal(i["x0"].masked_fill(mask, c["codebook_size"]), "masked_ids")
    case.close(masked_loss(i["pred"], labels), "loss")


@torch.no_grad()
def vqgan(case: Case) -> None:
    c, d = case.config, case.config["ddconfig"]
    assert c["embed_dim"] == d["z_channels"] and not d["double_z"]
    model = MaskGITVQGAN(
        MaskGITVQGANConfig(c["n_embed"], c["embed_dim"], d["ch"], tuple(d["ch_mult"]), d["num_res_blocks"], 2)
    )
    load_strict(model, MaskGITVQGAN.rename(case.weights), "VQGAN")
    model.eval()
    images = case.inputs["image"]
    hidden = model.encoder(images)
    case.close(hidden, "encoder")
    indices = model.encode(images * 2 - 1)
    case.equal(indices, "indices")
    case.close(model.quantize.codes(indices).movedim(-1, 1), "quantized")
    case.close((model.decode(case.inputs["ids"]) + 1) / 2, "decoded")


ADAPTERS = {
    "forward": forward,
    "generate": generate,
    "schedule": schedule,
    "train_mask": train_mask,
    "vqgan": vqgan,
}
