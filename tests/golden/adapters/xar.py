"""xAR: cells and tables, the training pass with noisy context, and both samplers."""

from __future__ import annotations

import re
from dataclasses import fields

import torch

from tests.golden.case import Case
from vistok.models.interface import Condition
from vistok.models.patches import patchify
from vistok.models.xar import XAR, XARConfig
from vistok.models.xar.entities import cell_side, parse_entities
from vistok.ops import apply_rope
from vistok.ops.rope import inverse_frequencies
from vistok.samplers.continuous.flow import Velocity, drift, euler, euler_maruyama, score, stochastic_times
from vistok.samplers.continuous.xar import GuidedXAR, draw_entities, guidance_scales
from vistok.zoo.checkpoint import load_strict

SYSTEM = "xar"


def config_of(case: Case) -> XARConfig:
    known = {f.name for f in fields(XARConfig)}
    config = XARConfig(**{k: v for k, v in case.config.items() if k in known})
    side = cell_side(config.grid, case.config["clusters"])
    return XARConfig(**{f.name: getattr(config, f.name) for f in fields(config)} | {"entity": f"cell:{side}"})


def build(case: Case) -> XAR:
    config = config_of(case)
    assert int(config.embed_dim * config.mlp_ratio * 2 / 3) == case.config["hidden_features"]
    weights = dict(case.weights)
    table = torch.zeros(config.class_num + 1, config.embed_dim)
    stored = re.search(r"rows \[([\d, ]+)\]", case.meta["notes"])[1]  # the classes whose rows a case holds
    table[[int(row) for row in stored.split(",")]] = weights["class_emb.weight"]
    model = XAR(config)
    load_strict(model, weights | {"class_emb.weight": table}, "xAR", XAR.dropped_keys)
    return model.eval()


def geometry(case: Case) -> None:
    config = config_of(case)
    model = XAR(config)
    entities = model.entities
    order = torch.cat(entities.positions)[:, 0]
    case.equal(order, "order")
    head_dim = case.config["head_dim"]
    case.close(inverse_frequencies(head_dim // 2), "rope_freqs")
    table = model.rope.repeat_interleave(2, 1)
    case.close(table[..., 0], "rope_cos")
    case.close(table[..., 1], "rope_sin")
    visible = model.numbers[:, None] >= model.numbers
    case.equal(visible.float()[None, None] - 1, "mask")
    turned = case.outputs["rotate_half_in"]
    quarter = torch.tensor([0.0, 1.0]).expand(len(turned), head_dim // 2, 2)  # a quarter turn of every pair
    case.close(apply_rope(turned[None, :, None], quarter)[0, :, 0], "rotate_half")
    sequence = case.inputs["seq"]
    side = parse_entities(config.entity, config.grid).grid
    case.close(entities.join(sequence).transpose(1, 2).unflatten(2, (side, side)), "unclusterified")


@torch.no_grad()
def train_forward(case: Case) -> None:
    model, i = build(case), case.inputs
    t, noise = i["t"].T, i["noise"].flatten(1, 2)
    clean = model.entities.split(patchify(i["latents"], model.config.patch_size))
    share = t[:, model.numbers, None]
    noisy = (1 - share) * clean + share * noise
    case.close(noisy, "model_input")
    case.close(model.velocities(noisy, t, i["labels"]), "velocity")
    case.close(model(i["latents"], i["labels"], t, noise), "loss")


def sde_formulas(case: Case) -> None:
    v, x, t = (case.inputs[k] for k in "vxt")
    t = t[:, None, None]
    case.close(score(v, x, t), "score")
    case.close(drift(v, x, t), "drift")
    case.close(stochastic_times(case.config["num_steps"]), "time_grid")


class Recorded(GuidedXAR):
    """Remembers both halves' velocities at the first and the last step of each entity, also where one does not run."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.seen: list[list] = [[]]

    def velocities(self, x, t, rows):
        self.seen[-1].append(super().velocities(x, t, 2 * self.batch))
        return self.seen[-1][-1][:rows]

    def keep(self, entity):
        super().keep(entity)
        self.seen[-1].pop()
        self.seen.append([])


@torch.no_grad()
def sample(case: Case) -> None:
    c, i = case.config, case.inputs
    model = build(case)
    guided = Recorded(model, Condition(i["labels"]), True)
    scales = guidance_scales(c["cfg"], len(model.entities.sizes))
    assert scales == c["guidance_per_cell"]

    def solve(k: int, velocity: Velocity, start: torch.Tensor) -> torch.Tensor:
        if "step_noise" in i:
            return euler_maruyama(velocity, start, i["step_noise"][k])
        return euler(velocity, start, c["num_steps"])

    drawn = draw_entities(guided, scales, i["init_noise"].flatten(1, 2), solve)
    case.close(drawn.unflatten(1, (len(scales), -1)), "cells")
    case.close(model.image_tokens(model.entities.join(drawn)), "latents")
    case.close(torch.stack([each[0] for each in guided.seen]), "first_velocity")
    case.close(torch.stack([each[-1] for each in guided.seen]), "last_velocity")


ADAPTERS = {
    "geometry": geometry,
    "train_forward": train_forward,
    "sde_formulas": sde_formulas,
    "sample_ode": sample,
    "sample_sde": sample,
}
