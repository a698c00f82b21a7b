"""Chat-3D v2: tokens of the paper's and of the later version, their order, and identifiers in text."""

from __future__ import annotations

import torch

from tests.golden.case import Case, compare
from vistok.projectors.learned.objects import (
    AttributeRelationTokens,
    ObjectTokens,
    assign,
    attribute_loss,
    interleave,
    recover,
)

SYSTEM = "chat3d_v2"


def object_tokens(case: Case) -> None:
    config, given = case.config, case.inputs
    module = AttributeRelationTokens(
        config["dim"],
        config["input_dim"],
        config["attr_dim"],
        config["layers"],
        config["heads"],
        config["head_dim"],
        config["obj_norm_scale"],
        config["scene_norm_scale"],
        config["layer_norm_eps"],
    ).eval()
    module.load_state_dict(case.weights, strict=True)
    with torch.no_grad():
        attributes, relations = module(given["features"], given["locs"], given["colours"], given["mask"])
    there = given["mask"].bool()
    case.close(attributes, "attribute_tokens")
    compare(relations[there], case.outputs["relation_tokens"][there], "relation_tokens", case.atol, case.rtol)
    loss = attribute_loss(attributes[:, 0], given["caption_embeds"], given["caption_mask"])
    case.close(loss[None], "stage1_loss")


def object_sequence(case: Case) -> None:
    config, given = case.config, case.inputs
    module = ObjectTokens(
        config["dim"],
        config["input_dim"],
        config["scene_dim"],
        config["layers"],
        config["heads"],
        config["feedforward"],
        config["activation"],
        config["layer_norm_eps"],
        config["scene_token"],
        config["image_token"],
    ).eval()
    module.load_state_dict(case.weights, strict=True)
    with torch.no_grad():
        streams = module(given["features"], given["locs"], given["mask"], given["image_features"])
        sequence, length = interleave(given["identifier_embeds"][given["assigned_ids"]], streams, given["order"])
    case.close(sequence, "sequence")
    case.equal(length, "length")


def identifiers(case: Case) -> None:
    config = case.config
    for text, assigned, expected in zip(
        config["texts"], config["assigned_ids"], case.meta["expected_texts"], strict=True
    ):
        assert assign(text, assigned) == expected
        assert recover(expected, assigned) == text


ADAPTERS = {"object_tokens": object_tokens, "object_sequence": object_sequence, "identifiers": identifiers}
