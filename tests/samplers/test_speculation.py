"""Greedy tokens are those of ``model.generate``, whatever drafts; and what cannot be done is said in a sentence."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.tiny import KINDS, prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import (
    Branching,
    Chain,
    DraftModel,
    DynamicBudget,
    DynamicLayers,
    IndependentChains,
    PromptLookup,
    Speculation,
    StochasticBeam,
    TokenRecycling,
    generate,
)
from vistok.samplers.policies.dynamic import DynamicTree
from vistok.samplers.policies.static import StaticTree
from vistok.samplers.tree import LawKind
from vistok.samplers.verifiers.candidates import TreeVerifier
from vistok.samplers.verifiers.rules import KSequential

POLICIES = {
    "chain": Chain(3),
    "confident chain": Chain(4, 0.3),
    "independent chains": IndependentChains(3, 3),
    "branching": Branching((3, 2, 1)),
    "beam": StochasticBeam(3, 3),
    "budget": DynamicBudget(6),
    "layers": DynamicLayers(0.1, 12, 4, 4),
    "eagle-2": DynamicTree(8, 2, 3),
    "eagle-1": StaticTree("mc_sim_7b_63"),
}
SMALL_TREE = ((0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0))


def drafters():
    found = {name: DraftModel(tiny(seed=1), policy) for name, policy in POLICIES.items()}
    return found | {"none": None, "recycling": TokenRecycling(SMALL_TREE), "lookup": PromptLookup(4, 2)}


def ragged():
    """Three prompts of 4, 7 and 2 tokens."""
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [1] * 7, [0, 0, 0, 0, 0, 1, 1]])
    return {"input_ids": prompt(3, 7, 1) * mask, "attention_mask": mask}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_of_every_architecture(kind, attention):
    model = tiny(kind, attention=attention)
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(**ragged(), **options)
    for drafter in (TokenRecycling(SMALL_TREE), DraftModel(tiny(seed=1), Branching((2, 1)))):
        assert torch.equal(generate(model, ragged(), drafter, **options).sequences, expected)


def test_a_class_that_wants_a_mask_of_every_sequence():
    from transformers import XGLMConfig, XGLMForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 23, "d_model": 16, "ffn_dim": 24, "num_layers": 2, "attention_heads": 4, "init_std": 0.35}
    model = XGLMForCausalLM(XGLMConfig(**sizes, max_position_embeddings=64, eos_token_id=None)).eval()
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
    for inputs in ({"input_ids": prompt(3, 7, 1)}, ragged()):  # of one length, and not
        expected = model.generate(**inputs, **options)
        for drafter in (None, TokenRecycling(SMALL_TREE), PromptLookup(4, 2), DraftModel(model, Branching((2, 1)))):
            assert torch.equal(generate(model, inputs, drafter, **options).sequences, expected)


def test_ids_of_32_bits_are_read():
    model, inputs = tiny(), {name: part.int() for name, part in ragged().items()}
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    found = generate(model, inputs, TokenRecycling(SMALL_TREE), **options).sequences
    assert torch.equal(found, model.generate(**inputs, **options))


@pytest.mark.parametrize("drafter", ["lookup", PromptLookup, 3])
def test_what_is_no_drafter_is_told(drafter):
    with pytest.raises(VistokError, match="PromptLookup"):
        generate(tiny(), prompt(), drafter, max_new_tokens=2)


@pytest.mark.parametrize("inputs", ["a text", ["a text"], [[1, 2, 3]], None])
def test_what_is_no_tokens_is_told(inputs):
    with pytest.raises(VistokError, match="tokenize"):
        generate(tiny(), inputs, PromptLookup(), max_new_tokens=2)


@pytest.mark.parametrize("name", drafters())
def test_greedy_tokens_with_every_drafter(name):
    model, drafter = tiny(), drafters()[name]
    for inputs in (prompt(), prompt(1, 1), ragged()):
        inputs = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else inputs
        options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
        found = generate(model, inputs, drafter, **options)
        assert torch.equal(found.sequences, model.generate(**inputs, **options))
        assert found.stats.lengths.tolist() == [24] * len(found.sequences)


@pytest.mark.parametrize("name", ["none", "recycling", "chain", "layers"])
def test_sequences_end_at_end_tokens(name):
    model, inputs = tiny(), ragged()
    plain = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=0)
    ends = [int(plain[0, 7 + 9]), int(plain[1, 7 + 4])]
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "eos_token_id": ends}
    found = generate(model, inputs, drafters()[name], **options)
    assert torch.equal(found.sequences, model.generate(**inputs, **options))
    lengths = found.stats.lengths
    assert lengths.min() < 24
    assert bool((found.stats.forwards + found.stats.accepted == lengths - 1).all())


@pytest.mark.parametrize("name", ["none", "recycling", "lookup", "chain", "branching"])
def test_processors_see_the_text_of_every_node(name):
    model = tiny()
    options = {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "pad_token_id": 0}
    for inputs in ({"input_ids": prompt()}, ragged()):
        expected = model.generate(**inputs, **options, max_new_tokens=12)
        found = generate(model, inputs, drafters()[name], **options, max_new_tokens=12)
        assert torch.equal(found.sequences, expected)


def test_a_draft_model_that_is_the_target_is_always_right():
    for sampling in (False, True):
        found = generate(
            tiny(), prompt(2), DraftModel(tiny(), Chain(3)), max_new_tokens=21, do_sample=sampling, pad_token_id=0
        )
        assert found.stats.forwards.tolist() == [5, 5]  # 20 tokens behind the first, four a step
        assert found.stats.acceptance_rate == 1.0


def test_one_line_switches_it_on_and_a_seed_fixes_the_draws():
    model, draft, speculation = tiny(), tiny(seed=1), Speculation(TokenRecycling(SMALL_TREE))
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.7, "top_k": 5, "pad_token_id": 0}
    runs = []
    for _ in range(2):
        torch.manual_seed(3)
        runs.append(model.generate(prompt(), **options, custom_generate=Speculation(DraftModel(draft))))
    assert torch.equal(*runs)
    found = model.generate(prompt(), **options, custom_generate=speculation, return_dict_in_generate=True)
    assert found.sequences.shape == (1, 7 + 12)
    assert speculation.stats.tokens == 12


@pytest.mark.parametrize("name", ["recycling", "lookup", "eagle-2"])
def test_drafts_that_a_rule_picks_leave_the_draws_of_a_seed_alone(name):
    model, options, runs = tiny(), {"max_new_tokens": 20, "do_sample": True, "pad_token_id": 0}, []
    for drafter in (None, drafters()[name]):
        torch.manual_seed(4)
        runs.append(generate(model, ragged(), drafter, **options).sequences)
    assert torch.equal(*runs)


def test_bad_input_is_told():
    model, options = tiny(), {"max_new_tokens": 8, "pad_token_id": 0}
    wrong = TreeVerifier(KSequential(), frozenset({LawKind.INDEPENDENT}))
    with pytest.raises(VistokError, match="would bias"):
        generate(model, prompt(), TokenRecycling(SMALL_TREE), wrong, do_sample=True, **options)
    with pytest.raises(VistokError, match="num_beams"):
        generate(model, prompt(), num_beams=2, **options)
    with pytest.raises(VistokError, match="padded on the left"):
        generate(model, {"input_ids": prompt(2), "attention_mask": ragged()["attention_mask"][:2].flip(1)}, **options)
    with pytest.raises(VistokError, match="vocabulary"):
        drafter = TokenRecycling(SMALL_TREE)
        generate(model, prompt(), drafter, **options)
        generate(tiny(seed=2, vocab_size=29), prompt(), drafter, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Chain(0),
        lambda: Chain(3, 1.0),
        lambda: IndependentChains(0),
        lambda: Branching(()),
        lambda: StochasticBeam(0),
        lambda: DynamicBudget(0),
        lambda: DynamicLayers(0.0),
        lambda: PromptLookup(0),
        lambda: TokenRecycling(((0, 0),)),
        lambda: TokenRecycling(()),
    ],
)
def test_drafts_that_make_no_sense_are_refused(make):
    with pytest.raises(VistokError):
        make()
