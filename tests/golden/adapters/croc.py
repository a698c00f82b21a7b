"""Croc: the pool of prompt tokens, the two masks, the reconstruction head and its losses."""

from __future__ import annotations

import torch

from tests.golden.case import Case
from vistok.projectors.learned.croc import (
    PromptPool,
    Reconstruction,
    caption_loss,
    mixed_mask,
    normalize_visual,
    reconstruction_loss,
    splice,
)

SYSTEM = "croc"


def pool(case: Case) -> None:
    config, given = case.config, case.inputs
    module = PromptPool(config["pool"], config["dim"])
    module.load_state_dict({key.removeprefix("model."): value for key, value in case.weights.items()}, strict=True)
    tokens = normalize_visual(given["projected"])
    assert (given["selected"].sum(1) == config["tokens"] - config["keep"]).all()
    for name in ("nearest", "hungarian"):
        index = module.match(tokens, given["selected"], reference=name == "nearest")
        case.equal(index, f"index_{name}")
        replaced = module.replace(tokens, index)
        case.close(replaced, f"replaced_{name}")
        if name == "nearest":
            texts = (given[key] for key in ("input_ids", "attention_mask", "labels", "embed_tokens"))
            sequence = splice(*texts, replaced)
    case.close(sequence.embeds, "sequence")
    case.equal(sequence.labels, "labels")
    case.equal(sequence.attention_mask, "attention_mask")
    case.equal(sequence.image_positions, "image_positions")
    case.close(tokens, "targets")


def mask(case: Case) -> None:
    given = case.inputs
    rows = given["attention_mask"].bool()[:, :, None]  # those of padding are not compared
    for name in ("published", "mixed"):
        seen = mixed_mask(
            given["image_positions"], given["attention_mask"], given["labels"], reference=name == "published"
        )
        assert torch.equal(seen & rows, case.outputs[name] & rows), name


def objective(case: Case) -> None:
    config, given = case.config, case.inputs
    head = Reconstruction(
        config["dim"], config["tokens"], config["heads"], config["intermediate"], config["layer_norm_eps"]
    ).eval()
    prefix = "transform_block."
    state = {key.removeprefix(prefix): value for key, value in case.weights.items() if key.startswith(prefix)}
    head.load_state_dict(state, strict=True)
    with torch.no_grad():
        restored = head(given["hidden_states"], given["image_positions"])
    case.close(restored, "reconstruction")
    image = reconstruction_loss(restored, given["targets"], config["smooth_l1_beta"], config["image_weight"])
    caption = caption_loss(given["hidden_states"] @ case.weights["lm_head.weight"].T, given["labels"])
    case.close(image[None], "image_loss")
    case.close(caption[None], "caption_loss")
    case.close((image + caption)[None], "loss")


ADAPTERS = {"pool": pool, "mask": mask, "objective": objective}
