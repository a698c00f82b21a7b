"""p-MoD: schedules, and one mixed layer in prefill, run by the hooks that run it in a model."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaModel

from tests.golden.case import Case
from vistok.models.attach import Attachment
from vistok.projectors.apply.depths import DepthMixture
from vistok.projectors.methods.pmod import PMod, progressive_ratios
from vistok.zoo.checkpoint import load_strict

SYSTEM = "p_mod"


def schedule(case: Case) -> None:
    config = case.config
    total = len(case.outputs["ratio"])
    ratios = progressive_ratios(total, config["average"], config["max"], config["min"], config["kind"])
    case.close(torch.tensor([1.0 if r is None else r for r in ratios], dtype=torch.float64), "ratio")
    case.equal(torch.tensor([r is not None for r in ratios]), "is_mod")


@torch.no_grad()
def layer(case: Case) -> None:
    config, hidden = case.config, case.inputs["hidden"]
    model = LlamaModel(
        LlamaConfig(
            vocab_size=8,
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate"],
            num_hidden_layers=1,
            num_attention_heads=config["num_heads"],
            num_key_value_heads=config["num_kv_heads"],
            rms_norm_eps=config["rms_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        )
    ).eval()
    method = PMod(config["hidden_size"], [config["ratio"]], config["weight_norm"], "router.router.bias" in case.weights)
    load_strict(
        model.layers[0], {k[14:]: v for k, v in case.weights.items() if k.startswith("decoder_layer.")}, "layer"
    )
    load_strict(
        method, {f"model.layers.0.{k}": v for k, v in case.weights.items() if k.startswith("router.")}, "router"
    )
    visual, present = case.inputs["vision_mask"].bool(), case.inputs["attention_mask"].bool()
    case.close(method.router(0)(hidden), "router_logits")
    mixture = DepthMixture(model, method, Attachment(model), 0)
    mixture.begin(visual, present, hidden.shape[1])
    line = torch.arange(hidden.shape[1])
    mask = (line <= line[:, None]) & present[:, None] | torch.eye(len(line), dtype=torch.bool)
    rotary = model.rotary_emb(hidden, line[None].expand(len(hidden), -1))
    out = model.layers[0](hidden, attention_mask=mask[:, None], position_embeddings=rotary)
    case.close(out, "hidden")


ADAPTERS = {"layer": layer, "schedule": schedule}
