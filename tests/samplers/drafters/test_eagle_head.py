"""EAGLE heads for text: what they read is the target's, their drafts are those of one full pass, loading is strict."""

from __future__ import annotations

import json

import pytest
import torch

from tests.samplers.test_speculation import POLICIES, ragged
from tests.samplers.tiny import KINDS, prompt, tiny, tiny_head
from vistok.errors import VistokError
from vistok.models.heads.eagle import Eagle3Network, EagleConfig, EagleNetwork
from vistok.samplers import Chain, EagleHead, Prompt, Speculation, TextTarget, generate
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.static import StaticTree

OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("name", POLICIES)
def test_greedy_tokens_are_the_targets(name):
    drafter = EagleHead(tiny_head(), POLICIES[name])
    found = generate(tiny(), ragged(), drafter, **OPTIONS)
    assert torch.equal(found.sequences, tiny().generate(**ragged(), **OPTIONS))
    assert drafter.forwards > 0


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_what_the_output_layer_reads(kind, attention):
    model, inputs = tiny(kind, attention=attention), ragged()
    asked = Prompt.of(inputs["input_ids"], inputs["attention_mask"])
    read = []
    with torch.inference_mode():
        target = TextTarget(model, asked, 4, features=True, reader=lambda *piece: read.append(piece))
        scores = target.prefill()
        logits = model.get_output_embeddings()(scores.hidden)
    tokens, behind = (torch.cat(parts) for parts in zip(*read, strict=True))
    real = torch.arange(7) < asked.count[:, None]
    assert torch.equal(tokens, asked.flush[real])
    assert torch.allclose(logits[real], behind, atol=1e-5)
    for row, count in enumerate(asked.count):  # features lie as the flush prompts do
        assert torch.allclose(logits[row, count - 1], scores.logits[row, 0], atol=1e-5)
    head = tiny_head().to(model.dtype)
    found = model.generate(**inputs, **OPTIONS, custom_generate=Speculation(EagleHead(head, DynamicTree(6, 2, 3))))
    assert torch.equal(found, model.generate(**inputs, **OPTIONS))


class Recorded(EagleHead):
    """Keeps every tree, with the number of decided tokens."""

    def propose(self, run):
        tree = super().propose(run)
        self.trees.append((run.decided.clone(), tree.tokens))
        return tree


@pytest.mark.parametrize("longest", [2048, 4])
def test_drafts_are_those_of_a_full_pass_over_the_text(longest):
    """Feature j with token j + 1, rotation j; drafted nodes go on with the predicted feature, without any cache. The
    rotations of a text that is longer than the head's configuration says are those of a longer one.
    """
    model, inputs, drafts = tiny(), ragged(), 3
    drafter = Recorded(tiny_head(max_position_embeddings=longest), Chain(drafts))
    drafter.trees = []
    found = generate(model, inputs, drafter, **OPTIONS).sequences
    head, checked = tiny_head(), 0
    for decided, trees in drafter.trees:
        for row, size in enumerate(decided.tolist()):
            if size >= OPTIONS["max_new_tokens"]:
                continue
            text = found[row, int((inputs["attention_mask"][row] == 0).sum()) : 7 + size][None]
            with torch.inference_mode():
                features = model(text[:, :-1], output_hidden_states=True).hidden_states[-1]
                tokens = text[:, 1:]
                for _ in range(drafts):
                    predicted = head(features, tokens)[:, -1:]
                    features = torch.cat([features, predicted], 1)
                    tokens = torch.cat([tokens, model.lm_head(predicted).argmax(-1)], 1)
            assert torch.equal(tokens[0, -drafts - 1 :], trees[row])
            checked += 1
    assert checked > 10


def test_a_published_head_for_llama_3_loads_strictly(tmp_path):
    head = tiny_head(bias=False, rope_theta=500000.0)
    layer = {f"self_attn.{p}_proj.weight" for p in "qkvo"} | {f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")}
    layer |= {"post_attention_layernorm.weight"}
    assert set(head.state_dict()) == {"embed_tokens.weight", "fc.weight"} | {f"layers.0.{key}" for key in layer}
    published = {"architectures": ["LlamaForCausalLM"], "vocab_size": 23, "hidden_size": 16, "intermediate_size": 24,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
                 "rope_scaling": None, "hidden_act": "silu", "bias": False}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(published))
    torch.save(head.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = EagleNetwork.from_pretrained(tmp_path).double()
    assert loaded.config == head.config
    runs = [
        generate(tiny(), prompt(), EagleHead(network, DynamicTree(6, 2, 3)), **OPTIONS) for network in (head, loaded)
    ]
    assert runs[0].stats.forwards.tolist() == runs[1].stats.forwards.tolist()
    torch.save(head.state_dict() | {"layers.0.input_layernorm.weight": torch.ones(16)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(VistokError, match="unexpected"):
        EagleNetwork.from_pretrained(tmp_path)


def test_a_head_of_another_target_is_refused():
    for head, what in (
        (tiny_head(width=24), "hidden width is 24, but the model's is 16"),
        (tiny_head(vocabulary=29), "vocabulary is 29, but the model's is 23"),
        (tiny_head().float(), "dtype is torch.float32"),
    ):
        with pytest.raises(VistokError, match=what):
            generate(tiny(), prompt(), EagleHead(head, StaticTree(((0,), (1,)))), **OPTIONS)
    with pytest.raises(VistokError, match="for pictures"):
        EagleHead(EagleNetwork(EagleConfig(23, 16, 24, 4, grid=4)))
    with pytest.raises(VistokError, match="Eagle3"):
        EagleHead(Eagle3Network(EagleConfig(23, 16, 24, 4)))
