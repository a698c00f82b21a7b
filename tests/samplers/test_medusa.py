"""Medusa heads: they draft without changing a token, and load as they are published, strictly."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import tiny, tiny_medusa
from vistok.errors import VistokError
from vistok.models.heads.medusa import Medusa
from vistok.samplers import MedusaHeads, best_tree, generate

OPTIONS = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("paths", [None, ((0,),), ((0,), (1,), (0, 0), (1, 0), (1, 1), (0, 0, 0))])
def test_greedy_tokens_are_the_targets(paths):
    found = generate(tiny(), ragged(), MedusaHeads(tiny_medusa(), paths), **OPTIONS)
    assert torch.equal(found.sequences, tiny().generate(**ragged(), **OPTIONS))


def test_untrained_heads_say_what_the_target_says():
    heads = Medusa.initial(tiny(), 2)
    features = torch.randn(3, 16, dtype=torch.float64)
    expected = tiny().get_output_embeddings()(features)
    assert all(torch.allclose(heads.double()(features)[:, k], expected) for k in range(2))


@pytest.mark.parametrize("layers", [1, 2])
def test_published_files_load_strictly(tmp_path, layers):
    network = tiny_medusa(layers=layers)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    assert {"0.0.linear.weight", "0.0.linear.bias", f"0.{layers}.weight"} <= set(weights)
    config = {"medusa_num_heads": 2, "medusa_num_layers": layers, "base_model_name_or_path": "tiny"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(weights, tmp_path / "medusa_lm_head.pt")
    found = Medusa.from_pretrained(tmp_path)
    features = torch.randn(2, 16)
    assert torch.allclose(found(features), network(features.double()).float(), atol=1e-5)
    (tmp_path / "medusa_lm_head.pt").unlink()
    save_file(weights | {"0.9.weight": torch.zeros(1)}, tmp_path / "medusa_lm_head.safetensors")
    with pytest.raises(VistokError, match=r"0\.9\.weight"):
        Medusa.from_pretrained(tmp_path)


def test_own_files_load_again(tmp_path):
    network = tiny_medusa()
    network.save_pretrained(tmp_path)
    found = Medusa.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(found[name], value.float()) for name, value in network.state_dict().items())


def test_heads_of_another_model_and_trees_without_heads_are_refused():
    with pytest.raises(VistokError, match=r"23 tokens.*width of 8"):
        generate(tiny(), ragged(), MedusaHeads(tiny_medusa(width=8)), **OPTIONS)
    with pytest.raises(VistokError, match=r"4 levels.*3 heads"):
        MedusaHeads(tiny_medusa(), best_tree([[0.9]] * 4, 4))
