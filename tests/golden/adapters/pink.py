"""Pink: boxes as text, what self-consistency keeps, and one layer of LLaMA and of CLIP with its adapter."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.data.boxes import AGREES, box_text, overlap, parse_box, self_consistent
from vistok.models.bottleneck import add_bottlenecks

SYSTEM = "pink"


def boxes(case: Case) -> None:
    truth, sizes = case.inputs["boxes"], case.inputs["image_wh"]
    texts = [box_text(box, wh) for box, wh in zip(truth.tolist(), sizes.tolist(), strict=True)]
    assert texts == case.meta["expected_text"]
    found = [parse_box(text, wh) for text, wh in zip(case.config["answers"], sizes.tolist(), strict=True)]
    parsed = torch.tensor([box or (0.0,) * 4 for box in found], dtype=torch.float64)
    told = torch.tensor([box is not None for box in found])
    iou = overlap(parsed, truth, legacy=True) * told
    case.close(parsed, "parsed")
    case.close(iou, "iou")
    case.equal(~told, "format_error")
    case.equal(told & (iou > AGREES), "correct")


def self_consistency(case: Case) -> None:
    given, config = case.inputs, case.config
    told = ~torch.tensor(config["format_error"])
    kept = self_consistent(given["boxes"], given["grounded"], told, config["iou_threshold"], legacy=True)
    case.equal(kept, "kept")
    case.close(overlap(given["boxes"], given["grounded"], legacy=True) * told, "iou")
    assert sorted(set(given["picture"][kept].tolist())) == config["pictures_kept"]


def adapter_llama(case: Case) -> None:
    from transformers import LlamaConfig, LlamaModel

    config = case.config
    model = LlamaModel(
        LlamaConfig(
            vocab_size=2,
            hidden_size=config["hidden"],
            num_attention_heads=config["heads"],
            num_key_value_heads=config["heads"],
            intermediate_size=config["intermediate"],
            num_hidden_layers=1,
            rms_norm_eps=config["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": config["rope_theta"]},
            attn_implementation="sdpa",
        )
    )
    add_bottlenecks(model, config["adapter_dim"], config["non_linear"], mlp=has_mlp_adapter(case))
    load_layer(model.layers[0], case, "model.layers.0.")
    hidden = case.inputs["hidden_states"]
    places = torch.arange(hidden.shape[1])[None]
    with torch.no_grad():
        out = model.eval().layers[0](
            hidden,
            attention_mask=torch.ones(len(hidden), 1, *[hidden.shape[1]] * 2, dtype=torch.bool).tril(),
            position_ids=places,
            position_embeddings=model.rotary_emb(hidden, places),
        )
    case.close(out[0] if isinstance(out, tuple) else out, "hidden_states")


def adapter_clip(case: Case) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = case.config
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=config["hidden"],
            num_attention_heads=config["heads"],
            intermediate_size=config["intermediate"],
            num_hidden_layers=1,
            hidden_act=config["act"],
            layer_norm_eps=config["layer_norm_eps"],
            image_size=4,
            patch_size=2,
        )
    )
    add_bottlenecks(model, config["adapter_dim"], config.get("non_linear", False), mlp=has_mlp_adapter(case))
    (layer,) = (module for module in model.modules() if hasattr(module, "adapter_attn"))
    load_layer(layer, case, "vision_model.encoder.layers.0.")
    with torch.no_grad():
        out = model.eval() and layer(case.inputs["hidden_states"], None)
    case.close(out[0] if isinstance(out, tuple) else out, "hidden_states")


def has_mlp_adapter(case: Case) -> bool:
    return any(".adapter_mlp." in key for key in case.weights)


def load_layer(layer: torch.nn.Module, case: Case, prefix: str) -> None:
    layer.load_state_dict({key.removeprefix(prefix): value for key, value in case.weights.items()}, strict=True)


ADAPTERS = {
    "boxes": boxes,
    "self_consistency": self_consistency,
    "adapter_llama": adapter_llama,
    "adapter_clip": adapter_clip,
}
