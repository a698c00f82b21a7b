"""Continuous speculative decoding: aligned trajectories, the published acceptance rule, and the published runner."""

from __future__ import annotations

import math

import torch

from tests.golden.adapters.mar import build_mar, chain_of
from tests.golden.case import Case
from vistok.models.mar import Diffusion
from vistok.samplers.continuous.acceptance import (
    LastStep,
    derived_log_ratio,
    reference_log_ratio,
    reference_resample,
    reference_residual_weight,
)
from vistok.samplers.continuous.cspd_rules import run_reference
from vistok.samplers.continuous.cspd_run import CSpDRun
from vistok.samplers.continuous.head import draw_path
from vistok.samplers.continuous.mar import GuidedMAR
from vistok.samplers.continuous.schedule import MaskSchedule, ranks

SYSTEM = "cspd"


@torch.no_grad()
def trajectory(case: Case) -> None:
    start, steps = case.inputs["init_noise"], case.inputs["inter_noise"]
    path = draw_path(chain_of(case, len(start)), torch.cat([steps, start[None]]))
    case.close(path.mean, "final_mean")
    case.close(path.log_std[0].exp(), "final_std")
    case.close(path.value, "sample")
    # The reference leaves the temperature out of this sum; it cancels in every ratio.
    tempered = (len(steps) - 1) * math.log(case.config["temperature"])
    case.close(path.trajectory_log_std - tempered, "traj_log_std")


def accept(case: Case) -> None:
    i, tau = case.inputs, case.config["inner_temperature"]
    q, p = (LastStep(i[f"{m}_mean"], i[f"{m}_std"].log(), i[f"{m}_traj_log_std"]) for m in "qp")
    x = i["x"]
    log_ratio = reference_log_ratio(q, p, x, tau)
    case.close(log_ratio.exp(), "accept_ratio")
    accepted = log_ratio > i["u_accept"].log()
    case.equal(accepted, "accepted")
    case.close((p.trajectory - q.trajectory).sum(-1).exp(), "fixed_term")
    for law, name in ((p, "p"), (q, "q")):
        case.close(law.log_kernel(x, tau).exp(), f"{name}_kernel")
        case.close(law.log_density(x).exp(), f"{name}_pdf")
    wide = [LastStep(*(t.double() for t in (law.mean, law.log_std, law.trajectory))) for law in (q, p)]
    case.close(derived_log_ratio(*wide, x.double()), "exact_log_ratio")
    y = p.mean + p.log_std.exp() * i["proposal_noise"][0]
    case.close(y, "first_proposal")
    case.close(reference_residual_weight(q, p, y), "residual_weight")

    def proposal(attempts):
        wrapped = attempts % len(i["u_reject"])
        return i["proposal_noise"][wrapped], i["u_reject"][wrapped]

    values, _, rounds = reference_resample(q, p, ~accepted, torch.zeros_like(x), proposal, case.config["max_rounds"])
    case.close(torch.where(accepted[:, None], x, values), "result")
    assert rounds == int(i["rounds_used"]), "rounds of the residual loop"


class FedNumbers:
    """The case's random numbers, by verification."""

    def __init__(self, case: Case):
        self.inputs, self.verification = case.inputs, -1
        noise, start = case.inputs["inter_noise"], case.inputs["init_noise"]
        self.noise = torch.cat([noise, start[:, :, None]], dim=2)  # [B, L, T + 1, D]

    def path(self, rows, positions):
        return self.noise[rows, positions].transpose(0, 1)

    def accept(self, rows, positions):
        self.verification += 1
        return self.inputs[f"v{self.verification}_u_accept"]

    def proposal(self, rows, positions, attempts):
        """Rounds that the case does not hold were not needed there: their uniforms keep nothing."""
        normals, uniforms = [], []
        for attempt in attempts.tolist():
            held = f"v{self.verification}_prop{attempt}" in self.inputs
            normals.append(self.inputs[f"v{self.verification}_prop{attempt if held else 0}"])
            uniforms.append(self.inputs[f"v{self.verification}_u_rej{attempt}"] if held else torch.ones(len(rows)))
        return torch.stack(normals), torch.stack(uniforms)


@torch.no_grad()
def runner(case: Case) -> None:
    c, i = case.config, case.inputs
    models = {name: build_mar(c[name], case, f"{name}.") for name in ("draft", "target")}
    guided = {
        name: GuidedMAR(model, i["labels"], Diffusion(c[name]["num_sampling_steps"]), c["cfg"] != 1.0, c["temperature"])
        for name, model in models.items()
    }
    plan = MaskSchedule(models["target"].config.seq_len, c["num_iter"])
    scales = plan.guidance(c["cfg"], c["cfg_schedule"])
    run = CSpDRun(guided["target"], guided["draft"], plan, scales, ranks(i["orders"]), FedNumbers(case))
    seen = []
    run_reference(run, c["num_draft"], c["ratio"], c["inner_temperature"], report=seen.append)
    assert len(seen) == c["num_verifications"]
    for k, check in enumerate(seen):
        case.close(check.ratio, f"v{k}_accept_ratio")
        case.close(check.drafted, f"v{k}_draft")
        case.close(check.result, f"v{k}_result")
    case.close(models["target"].image_tokens(run.tokens), "latents")


ADAPTERS = {"trajectory": trajectory, "accept_tau": accept, "runner": runner}
