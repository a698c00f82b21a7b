"""S2D: exits are the first layers of their model, asked in turn, and decide the tokens of plain decoding."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import KINDS, prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import SortedDraft, generate
from vistok.samplers.drafters.sorted_draft import first_layers

OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("exits", [(1,), (1, 2)])
def test_greedy_tokens_are_those_of_plain_generate(exits, threshold):
    drafter = SortedDraft(tiny(seed=1), exits, 3, threshold)
    for inputs in (ragged(), {"input_ids": prompt(1, 1)}):
        expected = tiny().generate(**inputs, **OPTIONS)
        assert torch.equal(generate(tiny(), inputs, drafter, **OPTIONS).sequences, expected)


def test_the_target_drafts_for_itself_without_a_miss():
    """The whole model as its own draft: what the exits remember of drafts and texts must be right."""
    drafter = SortedDraft(tiny(), (2,), 3, 0.0)
    out = generate(tiny(), prompt(), drafter, max_new_tokens=21, do_sample=False)
    assert out.stats.emitted(0) == [4] * 5
    larger = SortedDraft(tiny(), (1, 2), 3, 1.0)  # no exit is ever sure, so nothing is drafted
    assert generate(tiny(), prompt(), larger, max_new_tokens=9, do_sample=False).stats.emitted(0) == [1] * 8


def test_a_small_exit_is_asked_alone_where_it_is_sure():
    drafter = SortedDraft(tiny(seed=1), (1, 2), 3, 0.0)
    generate(tiny(), prompt(), drafter, max_new_tokens=8, do_sample=False)
    assert drafter._exits[1].lm.forwards == 0 < drafter._exits[0].lm.forwards == drafter.forwards


@pytest.mark.parametrize("kind", KINDS)
def test_exits_are_the_first_layers(kind):
    model = tiny(kind)
    whole = model(prompt(), output_hidden_states=True)
    small = first_layers(model, 1)(prompt())
    norm = next(child for name, child in model.get_decoder().named_children() if "norm" in name)
    expected = model.get_output_embeddings()(norm(whole.hidden_states[1]))
    assert torch.allclose(small.logits, expected, atol=1e-9)
    assert torch.equal(model(prompt()).logits, whole.logits)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: SortedDraft(tiny(), (2, 1)), "that rise"),
        (lambda: SortedDraft(tiny(), ()), "that rise"),
        (lambda: SortedDraft(tiny(), (1, 9)), "2 layers"),
        (lambda: SortedDraft(tiny(), (1, 2), 0), "at least 1"),
        (lambda: generate(tiny(vocab_size=30), prompt(), SortedDraft(tiny(), (1, 2)), **OPTIONS), "of its size"),
    ],
)
@pytest.mark.filterwarnings("ignore:the draft model has")
def test_what_makes_no_sense_is_refused_in_a_sentence(make, reason):
    with pytest.raises(VistokError, match=reason):
        make()
