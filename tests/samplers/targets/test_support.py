"""Decoder-only classes of transformers: the tokens of plain ``generate``, or one sentence that names the reason."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.samplers.tiny import prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import Branching, Chain, DraftModel, PromptLookup, TokenRecycling, generate
from vistok.samplers.targets.cached_lm import CachedLM, windowed
from vistok.samplers.targets.support import check_model, learned_positions

# Whatever a config calls its sizes. Windows are 12 tokens, shorter than the texts below.
SIZES = {
    "vocab_size": 97, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3,
    "hidden_size": 32, "d_model": 32, "n_embd": 32, "word_embed_proj_dim": 32, "embedding_size": 32,
    "num_hidden_layers": 2, "num_layers": 2, "n_layer": 2, "n_layers": 2, "decoder_layers": 2, "encoder_layers": 2,
    "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4, "decoder_attention_heads": 4,
    "num_key_value_heads": 2, "num_kv_heads": 2, "head_dim": 8, "rotary_dim": 4,
    "intermediate_size": 48, "ffn_dim": 48, "ffn_hidden_size": 48, "n_inner": 48, "decoder_ffn_dim": 48,
    "max_position_embeddings": 128, "n_positions": 128, "n_ctx": 128, "max_seq_len": 128, "sliding_window": 12,
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "expert_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2,
    "moe_layer_start_index": 1, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "state_size": 4, "num_nextn_predict_layers": 0,
}  # fmt: skip
LATENT = {"num_key_value_heads": 4}
OPTIONS = {
    "axk1": LATENT,
    "sarvam_mla": LATENT,
    "youtu": LATENT,
    "qwen3_next": {"num_hidden_layers": 4},
    "deepseek_v32": LATENT,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "glm4_moe_lite": LATENT,
    "minicpm3": LATENT,
    "falcon": {"alibi": False, "new_decoder_architecture": True},
}
SAME = [
    "falcon", "deepseek_v3", "gemma3_text", "gpt2", "gpt_oss", "llama4_text", "mistral", "modernbert-decoder",
    "opt", "phi3",
]  # fmt: skip
SAME_SLOW = [  # half a minute together
    "afmoe", "apertus", "apertus1p5_text", "arcee", "aria_text", "axk1", "beam", "biogpt", "bitnet", "codegen",
    "cohere", "cohere2", "cohere2_moe", "ctrl", "cwm", "deepseek_v2", "diffllama", "doge", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone", "exaone4", "exaone_moe", "flex_olmo", "flint", "gemma", "gemma2", "glm", "glm4",
    "glm4_moe", "glm4_moe_lite", "gpt-sw3", "gpt_bigcode", "gpt_neox", "gpt_neox_japanese", "gptj", "granite",
    "granite_swa", "granitemoe", "granitemoe_swa", "granitemoeshared", "helium", "hrm_text", "hunyuan_v1_dense",
    "hunyuan_v1_moe", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2", "jetmoe", "kolibri1",
    "laguna", "lfm2", "llama", "mellum", "minicpm3", "minimax_m2", "minimax_m3_vl_text", "ministral",
    "ministral3", "mixtral", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi",
    "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "sarvam_mla", "sarvam_moe", "seed_oss", "smollm3",
    "solar_open", "stablelm", "starcoder2", "vaultgemma", "xglm", "youtu",
]  # fmt: skip
REFUSED = {
    "bloom": "ALiBi",
    "mpt": "ALiBi",
    "mamba": "state",
    "bart": "position_ids",
    "openai-gpt": "cache",
    "bert": "other logits",
    "lfm3": "conv",
}
REFUSED_SLOW = {
    "falcon_h1": "state",
    "falcon_mamba": "state",
    "rwkv": "state|cache",
    "nemotron_h": "state",
    "qwen3_next": "state",
    "olmo_hybrid": "state",
    "minimax": "linear_attention",
    "deepseek_v32": "indexed_attention",
    "gemma4_text": "RuntimeError",
    "xlnet": "cache",
    "trocr": "position_ids",
    "mbart": "position_ids",
    "pegasus": "position_ids",
    "roberta": "other logits",
}


def build(name: str, **options):
    """A random model of a type, with everything tiny that its config lets be."""
    config = CONFIG_MAPPING[name]
    known = {field for kind in config.__mro__ for field in getattr(kind, "__annotations__", {})}
    known |= set(inspect.signature(config.__init__).parameters)
    sizes = {field: value for field, value in SIZES.items() if field in known}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(**{**sizes, **OPTIONS.get(name, {}), **options})).eval()


def assert_same(model, drafters=None, length=16, **options):
    ids = torch.arange(20)[None] % 7 + 5
    options = {"max_new_tokens": length, "do_sample": False, **options}
    plain = model.generate(ids, **options)
    for drafter in drafters or (TokenRecycling(((0,), (1,), (0, 0), (1, 0))), PromptLookup(4)):
        assert torch.equal(generate(model, ids, drafter, **options).sequences, plain)


@pytest.mark.parametrize("name", [*SAME, *(pytest.param(name, marks=pytest.mark.slow) for name in SAME_SLOW)])
def test_tokens_are_those_of_plain_generate(name):
    assert_same(build(name))


@pytest.mark.parametrize(
    ("name", "reason"),
    [*REFUSED.items(), *(pytest.param(*pair, marks=pytest.mark.slow) for pair in REFUSED_SLOW.items())],
)
def test_the_rest_is_refused_in_a_sentence(name, reason):
    with pytest.raises(VistokError, match=rf"token trees on \w+: .*{reason}.*without speculation"):
        generate(build(name), torch.arange(20)[None] % 7 + 5, PromptLookup(4), max_new_tokens=8, do_sample=False)


def test_alibi_of_falcon_is_refused():
    with pytest.raises(VistokError, match="ALiBi"):
        check_model(build("falcon", alibi=True), 10)


def test_a_class_that_nobody_listed_is_asked():
    """A model whose attention takes the order of rows for the order of tokens."""
    model = copy.deepcopy(tiny())
    forward = model.model.forward

    def rows_are_positions(**arguments):
        cache = arguments.get("cache", arguments.get("past_key_values"))
        start = 0 if cache is None else cache.get_seq_length()
        length = arguments["input_ids"].shape[1]
        return forward(**arguments | {"position_ids": torch.arange(start, start + length)[None]})

    model.model.forward = rows_are_positions
    with pytest.raises(VistokError, match="other logits than its own forward"):
        check_model(model, 10)


def test_a_model_is_asked_once_and_its_hooks_see_nothing():
    model, calls = copy.deepcopy(tiny()), []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    check_model(model, 10)
    assert not calls and model._forward_pre_hooks


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_all_learned_positions_may_be_used_and_no_more(name):
    model = build(name, **{"gpt2": {"n_positions": 40}, "opt": {"max_position_embeddings": 40}}[name])
    assert learned_positions(model) == 40 and learned_positions(tiny()) is None
    for drafter in (TokenRecycling(), DraftModel(model, Chain(4)), DraftModel(model, Branching((3, 2)))):
        for length in (16, 20):
            assert_same(model, [drafter], length)
    with pytest.raises(VistokError, match=r"40 positions, .* 41: shorten"):
        generate(model, torch.arange(20)[None] + 5, PromptLookup(), max_new_tokens=21, do_sample=False)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotations_that_change_within_a_text_are_refused(kind):
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 30}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = build("llama", rope_parameters=rope, max_position_embeddings=120 if kind == "longrope" else 30)
    assert_same(model, length=10)
    with pytest.raises(VistokError, match=rf"{kind}\) beyond 30 tokens, .* shorten max_new_tokens"):
        generate(model, torch.arange(20)[None] + 5, PromptLookup(), max_new_tokens=11, do_sample=False)


def test_a_draft_model_may_have_fewer_positions_than_the_target():
    target = build("gpt2", n_positions=60)
    assert_same(target, [DraftModel(build("gpt2", n_positions=30), Chain(4))], 38)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mistral", {"sliding_window": 6}),
        ("gemma3_text", {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
        ("qwen2", {"sliding_window": 6, "use_sliding_window": True, "max_window_layers": 1}),
        ("mistral", {"sliding_window": 100}),
    ],
)
def test_windows_count_tokens_and_not_nodes(name, options, attention):
    model = build(name, attn_implementation=attention, **options)
    drafters = [TokenRecycling(), DraftModel(model, Branching((3, 2))), PromptLookup()]
    assert_same(model, drafters, 30)
    mask = torch.tensor([[0] * 3 + [1] * 4, [1] * 7])
    inputs = {"input_ids": prompt(2, 7, 3) * mask, "attention_mask": mask}
    plain = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    for drafter in drafters:
        assert torch.equal(generate(model, inputs, drafter, max_new_tokens=16, do_sample=False).sequences, plain)


def test_a_windowed_mask_is_that_of_the_rows_own_text():
    seen = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 1]], dtype=torch.bool)
    window = torch.tensor([[0, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 1]], dtype=torch.bool)
    chunk = torch.tensor([[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 0, 1]], dtype=torch.bool)
    assert torch.equal(windowed(seen[None], "window", 3)[0], window)
    assert torch.equal(windowed(seen[None], "chunk", 3)[0], chunk)
    assert torch.equal(windowed(seen[None], "window", None)[0], seen)


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_backbone_embedding_and_head_stand_for_the_model(name):
    """What a multimodal model or an image generator gives instead of the whole; positions may be ahead of rows."""
    model = build(name)
    ids, count = torch.arange(20)[None] % 7 + 5, torch.tensor([20])
    seen = torch.tensor([[[1, 0, 0], [1, 1, 0], [1, 0, 1]]], dtype=torch.bool)
    found = []
    with torch.inference_mode():
        for more in ({}, {"backbone": model.model, "embed": model.get_input_embeddings(), "head": model.lm_head}):
            lm = CachedLM(model, 30, **more, offset=torch.tensor([[3]]))
            found.append([lm.read(ids, count), lm.forward(ids[:, :3], torch.tensor([[0, 1, 1]]), seen)])
    for whole, parts in zip(*found, strict=True):
        assert torch.allclose(whole, parts, atol=1e-5)
