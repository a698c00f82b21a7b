"""A draft model that is drafted for says what it says alone, in fewer calls."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import prompt, tiny, tiny_prompt_tokens
from vistok.errors import VistokError
from vistok.samplers import (
    Aded,
    Chain,
    DraftModel,
    ExtraRowDrafter,
    NestedDraft,
    TokenRecycling,
    generate,
)

OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("inner", [lambda: ExtraRowDrafter(tiny_prompt_tokens()), lambda: TokenRecycling(warm=False)])
def test_tokens_and_acceptance_are_those_of_the_chain(inner):
    model, small = tiny(), tiny(seed=1)
    for inputs in (ragged(), {"input_ids": prompt(1, 1)}):
        plain = generate(model, inputs, DraftModel(small, Chain(4)), **OPTIONS)
        nested = generate(model, inputs, NestedDraft(small, inner(), 4), **OPTIONS)
        assert torch.equal(nested.sequences, plain.sequences)
        assert torch.equal(nested.stats.step_of, plain.stats.step_of)


def test_a_model_that_is_drafted_well_is_called_less():
    """The target drafts for itself, greedy text repeats, and lookups in it are what the inner drafter lives on."""
    model = tiny()
    plain = generate(model, prompt(), DraftModel(model, Chain(6)), max_new_tokens=60, do_sample=False)
    inner = TokenRecycling(((0,), (1,), (0, 0), (0, 0, 0)), warm=False)
    nested = generate(model, prompt(), NestedDraft(model, inner, 6), max_new_tokens=60, do_sample=False)
    assert torch.equal(nested.sequences, plain.sequences)
    assert nested.stats.draft_forwards < plain.stats.draft_forwards


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: NestedDraft(tiny(), Aded(), 0), "at least 1"),
        (lambda: generate(tiny(), prompt(), NestedDraft(tiny(), TokenRecycling()), **OPTIONS), "take another drafter"),
        (
            lambda: generate(tiny(), prompt(), NestedDraft(tiny(), ExtraRowDrafter(tiny_prompt_tokens(width=8)))),
            "8 wide",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(make, reason):
    with pytest.raises(VistokError, match=reason):
        make()
