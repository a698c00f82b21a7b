"""TidalDecode: an attention-only stack under the policy, through the package's cache, one step at a time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden.case import Case
from vistok.context.interface import Step
from vistok.context.tidal import TidalDecode
from vistok.ops import KVCache, apply_rope, rope_1d

SYSTEM = "tidaldecode"


def decode(case: Case) -> None:
    config, hidden = case.config, case.inputs["hidden"]
    total, dim = hidden.shape[1], config["D"]
    start, correction = config["sparse_layer_start"], config["correction_layer"]
    policy = TidalDecode(config["top_k"], start, correction, heads="query")
    cache = KVCache(config["layers"], len(hidden), total, config["Hkv"], dim)
    table = rope_1d(total, dim, config["rope_theta"])
    masks: list[Tensor] = []

    def run(rows: slice) -> Tensor:
        h = hidden[:, rows]
        step = Step(cache, h.shape[1])
        for layer in range(config["layers"]):
            x = F.rms_norm(h, h.shape[-1:], eps=1e-6)
            q, k, v = (
                F.linear(x, case.weights[f"layers.{layer}.{name}_proj.weight"]).unflatten(-1, (-1, dim))
                for name in "qkv"
            )
            q, k = (apply_rope(part, table[rows], "half").transpose(1, 2) for part in (q, k))
            cache.restore(step.start)
            out = policy.attend(step, layer, q, k, v.transpose(1, 2), None)
            if step.decoding and layer in (start, correction):
                mask = torch.zeros(config["Hq"], total, dtype=torch.bool)
                chosen = policy.chosen[0]
                masks.append(mask.scatter(1, chosen.expand(config["Hq"], -1), True))
            h = h + F.linear(out.transpose(1, 2).flatten(2), case.weights[f"layers.{layer}.o_proj.weight"])
        return h

    first = config["prefill"]
    case.close(run(slice(0, first)), "prefill")
    steps = [run(slice(n, n + 1)) for n in range(first, first + config["steps"])]
    case.close(torch.cat(steps, 1), "decode")
    case.equal(torch.stack(masks).unflatten(0, (-1, 2)), "selected_mask")


ADAPTERS = {"decode": decode}
