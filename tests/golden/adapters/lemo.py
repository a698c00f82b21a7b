"""LeMo: which tokens stay involved, a layer that runs on them alone with its gradients, and the predictor."""

from __future__ import annotations

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from tests.golden.case import Case
from vistok.train.involvement import (
    Predictor,
    block_attention,
    block_sums,
    kept_blocks,
    predictor_loss,
    recall,
    received_scores,
    run_involved,
    tokens_of,
)

SYSTEM = "lemo"


def select(case: Case) -> None:
    config = case.config
    scores = received_scores(case.inputs["attention"])
    sums = block_sums(scores, config["block"])
    case.close(scores, "scores")
    case.close(sums, "block_scores")
    tokens = tokens_of(kept_blocks(sums, config["epsilon"])[None], config["block"], config["tokens"])
    case.equal(torch.zeros(config["tokens"], dtype=torch.bool).scatter(0, tokens[0], True), "keep")


def layer(case: Case) -> None:
    config = case.config
    options = LlamaConfig(
        hidden_size=config["hidden_size"],
        num_attention_heads=config["heads"],
        num_key_value_heads=config["kv_heads"],
        intermediate_size=config["intermediate_size"],
        rms_norm_eps=config["rms_norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
        attn_implementation="sdpa",
    )
    module = LlamaDecoderLayer(options, 0).double()
    module.load_state_dict({name: weight.double() for name, weight in case.weights.items()})
    x = case.inputs["x"].clone().requires_grad_()
    positions = torch.arange(config["tokens"])[None]
    tables = LlamaRotaryEmbedding(options)(x, positions)
    tokens = case.inputs["keep"].nonzero().T
    y = run_involved(module, x, tokens, tables, position_ids=positions)
    (y * case.inputs["cotangent"]).sum().backward()
    case.close(y, "y")
    case.close(x.grad, "grad_x")
    case.close(module.mlp.gate_proj.weight.grad, "grad_gate")
    case.close(module.self_attn.k_proj.weight.grad, "grad_k")


def predictor(case: Case) -> None:
    config, x, attention = case.config, case.inputs["x"], case.inputs["attention"]
    module = Predictor(config["hidden_size"], config["rank"], config["block"]).double()
    module.load_state_dict(case.weights)
    target = block_attention(attention, config["block"])
    case.close(module(x), "block_attention")
    case.close(target, "target")
    case.close(predictor_loss(module, x, attention), "loss")
    true, predicted = (kept_blocks(law.mean(0), config["epsilon"]) for law in (target, module(x)))
    case.equal(true, "keep_true")
    case.equal(predicted, "keep_predicted")
    case.close(recall(true, predicted), "recall")


ADAPTERS = {"select": select, "layer": layer, "predictor": predictor}
