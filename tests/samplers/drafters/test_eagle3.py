"""EAGLE-3 heads for text: every published layout loads strictly and drafts losslessly, and what is odd is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from tests.projectors import tiny as tiny_pictures
from tests.samplers.test_speculation import POLICIES, ragged
from tests.samplers.tiny import prompt, tiny
from vistok import compress
from vistok.errors import VistokError
from vistok.models.heads.eagle3 import Eagle3Network
from vistok.models.heads.eagle3_config import Eagle3Config
from vistok.projectors import FastV
from vistok.samplers import EagleHead, Prompt, TextTarget, generate
from vistok.samplers.drafters.eagle_head import aux_layers
from vistok.samplers.policies.chains import Chain
from vistok.zoo.checkpoint import load_strict

OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
LAYERS = (0, 1, 1)  # of tiny's two
SHAPE = {"vocab_size": 23, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4,
         "num_key_value_heads": 2, "rms_norm_eps": 1e-6}  # fmt: skip


def network(**options) -> Eagle3Network:
    """A random head with a map of 11 of the 23 tokens unless told otherwise."""
    torch.manual_seed(7)
    config = Eagle3Config(**SHAPE | {"draft_vocab_size": 11, "aux_layers": LAYERS} | options)
    made = Eagle3Network(config).eval().requires_grad_(False)
    for weight in made.parameters():
        weight.mul_(2)
    if hasattr(made, "d2t"):
        ids = torch.arange(config.draft_vocab_size) * 2
        made.d2t.copy_(ids - torch.arange(len(ids)))
        made.t2d[ids] = True
    return made.double()


VARIANTS = {
    "classic": {},
    "every token": {"draft_vocab_size": 0},
    "normed residual": {"norm_before_residual": True},
    "norms before fc": {"norm_before_fc": True, "fc_norm": True},
    "normed output, two layers": {"norm_output": True, "num_hidden_layers": 2, "qk_norm": True, "head_dim": 6},
    "llama 3 rotations": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                           "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_tokens_are_the_targets(variant):
    drafter = EagleHead(network(**VARIANTS[variant]))
    found = generate(tiny(), ragged(), drafter, **OPTIONS)
    assert torch.equal(found.sequences, tiny().generate(**ragged(), **OPTIONS))
    assert drafter.forwards > 0


@pytest.mark.parametrize("name", POLICIES)
def test_policies_draw_over_a_smaller_vocabulary(name):
    drafter = EagleHead(network(), POLICIES[name])
    assert torch.equal(generate(tiny(), ragged(), drafter, **OPTIONS).sequences, tiny().generate(**ragged(), **OPTIONS))
    assert generate(tiny(), ragged(), drafter, **OPTIONS | {"do_sample": True}).stats.lengths.tolist() == [20] * 3


def test_the_states_are_those_that_enter_the_layers():
    model, inputs = tiny(), ragged()
    asked = Prompt.of(inputs["input_ids"], inputs["attention_mask"])
    with torch.inference_mode():
        found = TextTarget(model, asked, 4, features=LAYERS).prefill().hidden
        for row, count in enumerate(asked.count.tolist()):
            states = model(asked.flush[row : row + 1, :count], output_hidden_states=True).hidden_states
            wanted = torch.cat([states[layer] for layer in LAYERS], -1)
            assert torch.allclose(found[row, :count], wanted[0], atol=1e-8)


class Recorded(EagleHead):
    def propose(self, run):
        tree = super().propose(run)
        self.trees.append((run.decided.clone(), tree.tokens))
        return tree


@pytest.mark.parametrize("variant", VARIANTS)
def test_drafts_are_those_of_a_full_pass_over_the_text(variant):
    """Features of the text, then the head's own output, each with the token behind it, without any cache."""
    model, head, drafts, checked = tiny(), network(**VARIANTS[variant]), 3, 0
    drafter = Recorded(network(**VARIANTS[variant]), Chain(drafts))
    drafter.trees = []
    found = generate(model, prompt(), drafter, **OPTIONS).sequences
    for decided, trees in drafter.trees:
        size = int(decided[0])
        if size >= OPTIONS["max_new_tokens"]:
            continue
        text = found[:, : 7 + size]
        with torch.inference_mode():
            states = model(text[:, :-1], output_hidden_states=True).hidden_states
            features = head.read(torch.cat([states[layer] for layer in LAYERS], -1))
            tokens = text[:, 1:]
            for _ in range(drafts):
                predicted = head(features, tokens)[:, -1:]
                features = torch.cat([features, predicted], 1)
                tokens = torch.cat([tokens, head.token(head.logits(predicted).argmax(-1))], 1)
        assert torch.equal(tokens[0, -drafts - 1 :], trees[0])
        checked += 1
    assert checked > 3


@pytest.mark.parametrize("thinned", [False, True])
def test_drafting_behind_pictures(thinned):
    model, inputs = tiny_pictures.llava(), tiny_pictures.llava_inputs()
    wide = {"vocab_size": tiny_pictures.VOCAB, "hidden_size": 48, "aux_layers": (1, 2, 3), "num_attention_heads": 4}
    drafter = EagleHead(network(**wide).float())
    handle = compress(model, FastV(0.5)) if thinned else None
    plain = model.generate(**inputs, **OPTIONS)
    assert torch.equal(generate(model, inputs, drafter, **OPTIONS).sequences, plain)
    if handle is not None:
        handle.remove()


def write(folder, config, state):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def speculators(state):
    nested = SHAPE | {"model_type": "llama", "head_dim": 4, "rope_parameters": {"rope_type": "default"}}
    config = {"speculators_model_type": "eagle3", "draft_vocab_size": 11, "norm_before_residual": False,
              "eagle_aux_hidden_state_layer_ids": list(LAYERS), "transformer_layer_config": nested,
              "speculators_config": {"algorithm": "eagle3"}, "embed_requires_grad": True}  # fmt: skip
    state = {name.replace("midlayer.", "layers.0."): value for name, value in state.items()}
    return config, state | {"verifier_norm.weight": torch.ones(16), "verifier_lm_head.weight": torch.ones(23, 16)}


def specforge(state):
    """Counts the layers that states leave, and leaves the embeddings to the target."""
    config = SHAPE | {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 11, "norm_output": True}
    config |= {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in LAYERS]}}
    return config, {name: value for name, value in state.items() if name != "embed_tokens.weight"}


def safeailab(state):
    return SHAPE | {"draft_vocab_size": 11, "architectures": ["LlamaForCausalLM"]}, state


@pytest.mark.parametrize("layout", [speculators, specforge, safeailab])
def test_every_published_layout_loads_strictly(tmp_path, layout):
    made = network()
    config, state = layout(made.state_dict())
    loaded = Eagle3Network.from_pretrained(write(tmp_path / "head", config, state)).double()
    assert loaded.config.aux_layers == (() if layout is safeailab else LAYERS)
    if layout is safeailab:  # whose customary three are those of deep targets
        loaded.config = replace(loaded.config, aux_layers=LAYERS)
    assert loaded.borrows == (layout is specforge)
    made.share_embedding(tiny().get_input_embeddings().weight) if loaded.borrows else None
    runs = [generate(tiny(), prompt(), EagleHead(head, Chain(3)), **OPTIONS).stats for head in (made, loaded)]
    assert runs[0].step_of.tolist() == runs[1].step_of.tolist()
    with pytest.raises(VistokError, match="unexpected"):
        Eagle3Network.from_pretrained(write(tmp_path / "more", config, state | {"gate.weight": torch.ones(2)}))
    with pytest.raises(VistokError, match=r"lacks norm\.weight"):
        less = {name: value for name, value in state.items() if name != "norm.weight"}
        Eagle3Network.from_pretrained(write(tmp_path / "less", config, less))


def test_maps_of_a_head_that_drafts_every_token_may_be_there_and_change_nothing(tmp_path):
    made = network(draft_vocab_size=0)
    maps = {"d2t": torch.zeros(23, dtype=torch.int64), "t2d": torch.ones(23, dtype=torch.bool)}
    folder = write(tmp_path / "head", SHAPE, made.state_dict() | maps)
    assert Eagle3Network.from_pretrained(folder).config.draft_vocab_size == 0
    with pytest.raises(VistokError, match="d2t"):
        write(folder, SHAPE, made.state_dict() | maps | {"d2t": torch.ones(23, dtype=torch.int64)})
        Eagle3Network.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"speculators_model_type": "peagle"}, "peagle"),
        ({"speculators_model_type": "dflash"}, "dflash"),
        ({"norm_after_everything": True}, "norm_after_everything"),
        ({"draft_vocab_size": 12}, "12 drafted tokens"),
        ({"transformer_layer_config": SHAPE | {"model_type": "gemma4"}}, "gemma4"),
        (
            {"transformer_layer_config": SHAPE | {"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}},
            "mrope",
        ),
        ({"transformer_layer_config": SHAPE | {"use_sliding_window": True}}, "use_sliding_window"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(tmp_path, change, told):
    config, state = speculators(network().state_dict())
    with pytest.raises(VistokError, match=told):
        Eagle3Network.from_pretrained(write(tmp_path / "head", config | change, state))


def test_a_head_of_another_target_is_refused():
    with pytest.raises(VistokError, match="enters layer 5"):
        generate(tiny(), prompt(), EagleHead(network(aux_layers=(0, 1, 5))), **OPTIONS)
    with pytest.raises(VistokError, match="hidden width is 24"):
        generate(tiny(), prompt(), EagleHead(network(target_hidden_size=24)), **OPTIONS)
    borrowing = network(hidden_size=8, target_hidden_size=16)
    load_strict(
        borrowing, borrowing.complete({k: v for k, v in borrowing.state_dict().items() if "embed" not in k}), ""
    )
    with pytest.raises(VistokError, match="no embeddings"):
        generate(tiny(), prompt(), EagleHead(borrowing), **OPTIONS)
    assert aux_layers(Eagle3Config(**SHAPE), 32) == (2, 16, 29)
