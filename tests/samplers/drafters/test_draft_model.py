"""Draft models whose tables differ from the target's by padding, and those of another tokenizer."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.samplers.test_speculation import POLICIES, ragged
from tests.samplers.tiny import prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import Chain, DraftModel, generate
from vistok.zoo.transformers import load_causal_lm

OPTIONS = {"max_new_tokens": 12, "pad_token_id": 0}


class Tokenizer:
    def __init__(self, words):
        self.words = words

    def get_vocab(self):
        return {word: number for number, word in enumerate(self.words)}


SAME, OTHER = Tokenizer("abcdefghijklmnopqrstu"), Tokenizer("bacdefghijklmnopqrstu")


@pytest.mark.parametrize("size", [21, 29])
@pytest.mark.parametrize("policy", POLICIES)
def test_padding_on_either_side_changes_no_token(policy, size):
    drafter = DraftModel(tiny(seed=2, vocab_size=size), POLICIES[policy], tokenizer=SAME)
    found = generate(tiny(), ragged(), drafter, tokenizer=SAME, do_sample=False, **OPTIONS)
    assert torch.equal(found.sequences, tiny().generate(**ragged(), do_sample=False, **OPTIONS))
    sampled = generate(tiny(), ragged(), drafter, tokenizer=SAME, do_sample=True, **OPTIONS)
    assert int(sampled.sequences.max()) < 23


def test_what_only_the_draft_model_has_is_never_drafted():
    wide = tiny(seed=2, vocab_size=29)
    drafter, trees = DraftModel(wide, Chain(3), tokenizer=SAME), []
    grow = drafter.propose
    drafter.propose = lambda run: trees.append(grow(run)) or trees[-1]
    generate(tiny(), prompt(3), drafter, tokenizer=SAME, do_sample=True, **OPTIONS)
    assert all(int(tree.tokens.max()) < 23 and tree.laws.shape[-1] == 23 for tree in trees)


def test_another_tokenizer_is_refused_whatever_the_sizes():
    for size in (23, 29):
        drafter = DraftModel(tiny(seed=2, vocab_size=size), tokenizer=OTHER)
        with pytest.raises(VistokError, match=r"another tokenizer .* take one with"):
            generate(tiny(), prompt(), drafter, tokenizer=SAME, **OPTIONS)


def test_sizes_that_nothing_explains_are_told():
    with pytest.warns(UserWarning, match=r"29 tokens and the target 23, .*tokenizer=\.\.\."):
        generate(tiny(), prompt(), DraftModel(tiny(seed=2, vocab_size=29)), **OPTIONS)


def test_tokenizers_beside_the_weights_are_compared():
    (model, _), (small, _) = load_causal_lm("text-mini"), load_causal_lm("text-mini-draft")
    small.resize_token_embeddings(small.get_input_embeddings().weight.shape[0] + 64)
    inputs = torch.arange(12)[None] + 300
    plain = model.generate(inputs, max_new_tokens=12, do_sample=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = generate(model, inputs, DraftModel(small, Chain(4)), max_new_tokens=12, do_sample=False)
    assert torch.equal(found.sequences, plain)
    assert found.stats.acceptance_rate > 0
