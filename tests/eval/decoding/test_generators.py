"""Generators side by side: all are asked for the same objects, and operations are those of the definition."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cli.test_cli import vistok as command
from tests.test_families import QUICK, TOKENIZER, build, fails
from vistok.eval.decoding.comparison import Row
from vistok.eval.decoding.generators import caption, of_other_size
from vistok.eval.decoding.operations import count_operations
from vistok.ops.linear import pack_linears
from vistok.zoo.model_card import ModelCard, write_card


def test_operations_of_linear_maps_and_attention_are_counted_packed_or_not() -> None:
    x, packed = torch.randn(3, 5, 32), pack_linears(nn.Sequential(nn.Linear(32, 64)))
    q, k = torch.randn(2, 4, 16, 8), torch.randn(2, 4, 24, 8)
    mask = torch.ones(16, 24, dtype=torch.bool)
    with torch.inference_mode():
        assert count_operations(lambda: packed(x)) == 2 * 15 * 32 * 64
        assert count_operations(lambda: packed(x[:1, :1])) == 2 * 32 * 64  # padding is no work of the network
        for options in ({}, {"attn_mask": mask}):
            attention = count_operations(lambda options=options: F.scaled_dot_product_attention(q, k, k, **options))
            assert attention == 2 * 2 * (2 * 4) * 16 * 24 * 8
    torch.testing.assert_close(packed(x), F.linear(x, packed[0].weight, packed[0].bias))


def test_kinds_are_asked_for_in_words() -> None:
    assert caption(0) == "a photo of a red circle" and caption(1) == "a photo of an orange circle"
    assert caption(47) == "a photo of a pink diamond"


def test_rows_of_another_size_are_named() -> None:
    rows = [Row(name, True, {"parameters": count}) for name, count in (("a", 100), ("b", 129), ("c", 131), ("d", 69))]
    assert of_other_size(rows) == ["c", "d"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("generators")
    for family in ("xar", "maskgit"):
        torch.manual_seed(0)
        model = build(family, 48)
        model.save_pretrained(root / family)
        parts = {"tokenizer": TOKENIZER[family]}
        write_card(
            root / family, ModelCard(family, "class-to-image", family, 0, {}, str(root), "Apache-2.0", parts=parts)
        )
    return root


@pytest.mark.parametrize("batch", ["1", "2"])
def test_the_command_compares_what_draws_differently(folders, tmp_path, batch):
    masked, entity = folders / "maskgit", folders / "xar"
    names = f"{masked}@{QUICK['maskgit']},{entity}@{QUICK['xar']},{masked}@masked:steps=6"
    call = ("bench", "generators", "--generators", names, "--classes", "24", "--batch-size", batch)
    done = command(*call, "--json", str(tmp_path / "x.json"))
    assert done.returncode == 0, done.stderr
    few, entities, many = json.loads((tmp_path / "x.json").read_text())["rows"]
    assert (few["forwards"], many["forwards"]) == (3, 6)
    assert entities["forwards"] == 4 * 3 + 3  # of each cell three steps, and one that keeps it but for the last
    assert 0 < few["gflop"] < many["gflop"] and entities["gflop"] > 0
    assert few["parameters"] == many["parameters"] != entities["parameters"]
    assert few["speed_up"]["value"] == 1 and few["change"]["value"] == 0
    assert 0 <= few["detector"]["low"] <= few["detector"]["high"] <= 1 and few["distance"] > 0


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("llamagen,llamagen", ("twice",)),
        ("llamagen,", ("empty",)),
        ("lamagn", ("llamagen",)),
        ("mar@ar", ("ar", "mar")),
        ("vq-mini", ("paint",)),
    ],
)
def test_what_cannot_be_compared_is_told(names, said):
    fails(command("bench", "generators", "--generators", names), *said)


def test_generators_of_other_classes_are_refused(folders, tmp_path):
    build("maskgit").save_pretrained(tmp_path)
    card = ModelCard(
        "five", "class-to-image", "maskgit", 0, {}, str(tmp_path), "Apache-2.0", parts={"tokenizer": "vq-mini"}
    )
    write_card(tmp_path, card)
    fails(command("bench", "generators", "--generators", str(tmp_path)), "5 classes", "48")


@pytest.mark.parametrize("bench", ["generators", "mar"])
def test_too_few_pictures_are_refused_before_a_model_is_loaded(bench, monkeypatch):
    monkeypatch.setattr("vistok.pipelines.pipeline", None)
    fails(command("bench", bench, "--classes", "48"), "2 pictures", "--num")
