"""Lossy text decoding by name: lexical units and a judge do what their papers say, and stay within what they may."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.test_speculation import ragged
from tests.samplers.test_text_lossless import draft, p_value
from tests.samplers.tiny import VOCABULARY, prompt, tiny
from vistok.errors import VistokError
from vistok.models.heads.judge import JudgeConfig, JudgeHead
from vistok.samplers import Branching, Chain, DraftModel, Judge, KeepAll, LexicalUnits, generate
from vistok.samplers.verifiers.confidence import confidence_span

OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
PLACEHOLDER, AHEAD = 0, 4


def head(bias: float, width: int = 16) -> JudgeHead:
    found = JudgeHead(JudgeConfig(width)).double().requires_grad_(False)
    found.score.weight.zero_()
    found.score.bias.fill_(bias)
    return found


def lexical_units_by_hand(ids: torch.Tensor, threshold: float, new: int) -> list[int]:
    """The paper's loop on one text: append placeholders, keep the first token and those that are sure."""
    text = ids[0].tolist()
    placeholders = [PLACEHOLDER] * AHEAD
    while len(text) < ids.shape[1] + new:
        logits = tiny()(torch.tensor([text + placeholders])).logits[0, len(text) - 1 :]
        chance, token = logits.softmax(-1).max(-1)
        text += token[: int(confidence_span(chance[None], threshold))].tolist()
    return text[: ids.shape[1] + new]


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6])
def test_lexical_units_are_those_of_the_paper(threshold):
    # The pass over a prompt has no placeholders, so the first token is decided alone.
    start = tiny().generate(prompt(), max_new_tokens=1, do_sample=False)
    out = generate(tiny(), prompt(), LexicalUnits(PLACEHOLDER, AHEAD, threshold), KeepAll(), **OPTIONS)
    assert out.sequences[0].tolist() == lexical_units_by_hand(start, threshold, 19)
    if threshold == 0:
        assert out.stats.emitted(0)[1:4] == [AHEAD + 1] * 3


@pytest.mark.parametrize("threshold", [0.0, 0.4, 1.0])
def test_placeholders_under_a_lossless_verifier_only_draft(threshold):
    expected = tiny().generate(**ragged(), **OPTIONS)
    drafter = LexicalUnits(PLACEHOLDER, 3, threshold)
    assert torch.equal(generate(tiny(), ragged(), drafter, **OPTIONS).sequences, expected)


def test_a_judge_that_spares_nothing_is_exact():
    expected = tiny().generate(**ragged(), **OPTIONS)
    for policy in (Chain(3), Branching((2, 1))):
        drafter = DraftModel(tiny(seed=1), policy)
        assert torch.equal(generate(tiny(), ragged(), drafter, Judge(head(-99.0)), **OPTIONS).sequences, expected)
    assert p_value(draft(Branching((2, 2))), Exact(head(-99.0)), "plain") > 1e-4


def test_a_judge_that_spares_all_keeps_every_draft():
    out = generate(tiny(), prompt(), DraftModel(tiny(seed=1), Chain(3)), Judge(head(99.0)), **OPTIONS)
    assert out.stats.emitted(0)[:4] == [4] * 4


class Exact(Judge):
    """Wears the label that the test of losslessness asks for."""

    lossless = True


def test_a_judge_that_spares_is_caught():
    assert not Judge(head(0.0)).lossless and not KeepAll().lossless
    assert p_value(draft(Branching((2, 2))), Exact(head(99.0)), "plain", batch=6000) < 1e-6


def test_a_head_round_trips(tmp_path):
    head(0.5).save_pretrained(tmp_path)
    assert float(JudgeHead.from_pretrained(str(tmp_path)).score.bias.detach()) == 0.5


SMALL = DraftModel(tiny(seed=1), Chain(3))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: generate(tiny(), prompt(), SMALL, Judge(head(0, 8)), **OPTIONS), "8 numbers"),
        (lambda: generate(tiny(), prompt(), SMALL, Judge(head(0)), repetition_penalty=1.5, **OPTIONS), "processors"),
        (
            lambda: generate(tiny(), prompt(), LexicalUnits(0), KeepAll(), repetition_penalty=1.5, **OPTIONS),
            "bypass logits processors",
        ),
        (lambda: generate(tiny(), prompt(), LexicalUnits(VOCABULARY), **OPTIONS), "trained with"),
        (lambda: generate(tiny(), prompt(), SMALL, KeepAll(), do_sample=True, max_new_tokens=4), "would bias"),
        (lambda: Judge(head(0), 2.0), "0 to 1"),
        (lambda: LexicalUnits(0, 0), "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(make, reason):
    with pytest.raises(VistokError, match=reason):
        make()
