"""ControlAR: control encoder, streams, teacher-forced and cached logits, greedy generation, and published keys."""

from __future__ import annotations

from dataclasses import fields

import torch
import torch.nn.functional as F

from tests.golden.case import Case
from vistok.models.controlar import PATCH, ControlAR, ControlARConfig
from vistok.models.interface import Condition, Control
from vistok.ops import combine_guidance
from vistok.samplers import SamplingParams
from vistok.samplers.targets.controlar import ControlTarget
from vistok.zoo.checkpoint import load_strict

SYSTEM = "controlar"


def build(case: Case) -> ControlAR:
    c, adapter = case.config, case.config["adapter"]
    known = {f.name for f in fields(ControlARConfig)}
    kind = c.get("condition_type", "canny")
    assert adapter["patch_size"] == PATCH[c["model_type"]]
    ratio = adapter.get("mlp_ratio") or adapter["intermediate_size"] // adapter["hidden_size"]
    config = ControlARConfig(
        **{k: v for k, v in c.items() if k in known},
        controls=(kind,),
        adapter_width=adapter["hidden_size"],
        adapter_depth=adapter["num_hidden_layers"],
        adapter_heads=adapter["num_attention_heads"],
        adapter_mlp_ratio=ratio,
        adapter_image_size=adapter["image_size"],
    )
    model = ControlAR(config)
    load_strict(model, case.weights, "ControlAR")
    return model.eval()


@torch.no_grad()
def check_picture(case: Case, model: ControlAR, prefix: str, condition: torch.Tensor, mask: torch.Tensor | None):
    """All outputs of one control picture, whose names begin with ``prefix``."""
    picture, tokens = case.inputs[f"{prefix}control"], case.inputs[f"{prefix}tokens"]
    model, batch = model.resized(*picture.shape[-2:]), len(tokens)
    control = Control(picture, model.controls[0])
    resized = model.adapter.resize(picture, control.kind in ("canny", "seg"))
    if f"{prefix}resized" in case.outputs:
        case.close(resized, f"{prefix}resized")
    features = model.adapter(resized)
    case.close(features, f"{prefix}adapter_features")
    case.close(model.control_tokens(features), f"{prefix}control_tokens")
    streams = model.streams([control])
    assert sorted(streams) == [j * (model.config.n_layer // 3) for j in range(3)]
    for j, layer in enumerate(sorted(streams)):
        if f"{prefix}injected{j}" in case.outputs:
            case.close(streams[layer], f"{prefix}injected{j}")
    logits = model(tokens[:, :-1], condition, mask, [control])
    case.close(logits, f"{prefix}train_logits")
    case.close(F.cross_entropy(logits.flatten(0, 1), tokens.flatten()), f"{prefix}train_loss")
    if f"{prefix}cached_logits" in case.outputs:
        state = model.new_state(batch)
        state.added = streams
        rows = [model.head(model.prefill(condition, state, mask)[:, -1])]
        for i in range(tokens.shape[1] - 1):
            rows.append(model.head(model.decode(tokens[:, i : i + 1], torch.tensor([i]), state))[:, 0])
            state.cache.advance(1)
        case.close(torch.stack(rows, 1), f"{prefix}cached_logits")
    for name in sorted(n for n in case.outputs if n.startswith(f"{prefix}gen.") and n.endswith(".tokens")):
        generate(case, model, name.removesuffix(".tokens"), Condition(condition, mask, (control,)))


def generate(case: Case, model: ControlAR, name: str, condition: Condition) -> None:
    """Greedy generation; a name such as ``gen.cfg4_strength06`` says its options."""
    options = name.rpartition("gen.")[2].split("_")
    scale = next((float(each.removeprefix("cfg")) for each in options if each.startswith("cfg")), 1.0)
    strength = next((float(f"{each[8]}.{each[9:] or 0}") for each in options if each.startswith("strength")), 1.0)
    if "ignored" in options:  # what the reference does without guidance; here it is honoured
        strength = 1.0
    control = tuple(Control(each.picture, each.kind, strength) for each in condition.control)
    target = ControlTarget(model, Condition(condition.values, condition.mask, control), SamplingParams(scale), 1)
    batch, guided, raw, tokens = len(condition), scale > 1, [], []
    hidden = model.prefill(target.condition.values, target.state, target.condition.mask)[:, -1]
    for i in range(model.tokens.length):
        raw.append(model.head(hidden))
        tokens.append((combine_guidance(*raw[-1].chunk(2), scale) if guided else raw[-1]).argmax(-1))
        if i + 1 < model.tokens.length:
            fed = tokens[-1].repeat(2 if guided else 1)[:, None]
            hidden = model.decode(fed, torch.tensor([i]), target.state)[:, 0]
            target.state.cache.advance(1)
    assert len(tokens[0]) == batch
    case.close(torch.stack(raw, 1), f"{name}.raw_logits")
    case.equal(torch.stack(tokens, 1), f"{name}.tokens")


def text(case: Case) -> None:
    model = build(case)
    for image in case.meta["images"]:
        check_picture(case, model, f"{image['name']}.", case.inputs["caption"], case.inputs.get("mask"))


def classes(case: Case) -> None:
    check_picture(case, build(case), "", case.inputs["class_ids"], None)


def state_dict_manifest(case: Case) -> None:
    for name, variant in case.meta["variants"].items():
        template = variant["state_dict_template"]
        expected = {
            key.replace("{i}", str(i)).replace("{j}", str(j)): shape
            for key, shape in template.items()
            for i in range(variant["n_layer"] if "{i}" in key else 1)
            for j in range(12 if "{j}" in key else 1)
        }
        preset = f"ControlAR-{'XL' if 'XL' in name else name.split()[1]}{'-base' if 'base' in name else ''}"
        with torch.device("meta"):
            model = ControlAR.from_preset(preset, block_size=template["condition_mlp.uncond_embedding"][0])
        assert {k: list(v.shape) for k, v in model.state_dict().items()} == expected, name
        assert len(expected) == variant["keys_total"], name
        assert sum(p.numel() for p in model.parameters()) == variant["params"], name


ADAPTERS = {"t2i": text, "c2i": classes, "state_dict_manifest": state_dict_manifest}
