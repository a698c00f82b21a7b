"""PEARL: plain decoding's tokens to the last one, the law of sampled ones, and a word where it falls back."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy.stats import chi2

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import SamplingParams
from vistok.samplers.pearl import CachedSide, Pearl, executors, interleave, tokens_a_round

GREEDY = {"do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("gamma", [2, 4])
@pytest.mark.parametrize("new", [1, 2, 7, 24])
def test_greedy_tokens_are_the_targets(gamma, new):
    for draft in (tiny(seed=1), tiny()):
        pearl = Pearl(draft, gamma, force=True)
        for ids in (prompt(), prompt(1, 1)):
            found = tiny().generate(ids, max_new_tokens=new, **GREEDY, custom_generate=pearl)
            assert torch.equal(found, tiny().generate(ids, max_new_tokens=new, **GREEDY))
        assert pearl.told is None


def test_a_draft_model_that_is_the_target_saves_forwards():
    pearl = Pearl(tiny(), 4, force=True)
    tiny().generate(prompt(), max_new_tokens=25, **GREEDY, custom_generate=pearl)
    assert pearl.counts.target_forwards == 7  # one for the first four, then four a forward, less the tail's
    assert pearl.counts.accepted == []


def test_it_ends_at_end_tokens():
    plain = tiny().generate(prompt(), max_new_tokens=24, **GREEDY)
    options = {"max_new_tokens": 24, **GREEDY, "eos_token_id": int(plain[0, 7 + 9])}
    found = tiny().generate(prompt(), **options, custom_generate=Pearl(tiny(seed=1), force=True))
    assert torch.equal(found, tiny().generate(prompt(), **options))


class Table:
    """A model of three tokens whose laws are those of the last two."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.table = (1.2 * torch.randn(3, 3, 3, generator=generator, dtype=torch.float64)).softmax(-1)

    def laws(self, text, rows):
        return self.table[torch.cat([text[:1], text[:-1]]), text][-rows:]


def p_value(uniform, seed: int = 0, runs: int = 1500) -> float:
    """Of 1500 texts of four sampled tokens, against their exact law."""
    target, draft, generator = Table(0), Table(1), torch.Generator().manual_seed(seed)
    expected = {}
    for text in itertools.product(range(3), repeat=4):
        chance, before, last = 1.0, 0, 0
        for token in text:
            chance, before, last = chance * float(target.table[before, last, token]), last, token
        expected[text] = runs * chance
    counts = dict.fromkeys(expected, 0)
    for _ in range(runs):
        found, _, _ = interleave(
            target,
            draft,
            torch.zeros(1, dtype=torch.int64),
            5,
            2,
            lambda law: torch.multinomial(law, 1, generator=generator),
            lambda: uniform(float(torch.rand((), generator=generator))),
        )
        counts[tuple(found[1:5].tolist())] += 1
    statistic = sum((counts[text] - wanted) ** 2 / wanted for text, wanted in expected.items())
    return float(chi2.sf(statistic, len(expected) - 1))


def test_sampled_tokens_follow_the_law_and_a_lax_twin_is_caught():
    assert max(p_value(lambda u: u), p_value(lambda u: u, seed=1)) > 1e-2
    assert p_value(lambda u: 0.3 * u) < 1e-4  # accepts more than the law allows


def test_two_executors_run_at_the_same_time():
    import threading

    meeting = threading.Barrier(2, timeout=10)
    with executors(torch.device("cpu")) as together:
        assert together(lambda: (meeting.wait(), 1)[1], lambda: (meeting.wait(), 2)[1]) == (1, 2)


def test_a_side_reads_on_from_what_two_texts_share():
    side = CachedSide(tiny(), SamplingParams(), 32, 23)
    text = prompt(1, 9)[0]
    other = torch.cat([text[:5], text[5:].flip(0)])
    for ids, rows in ((text[:6], 1), (text, 3), (other, 2), (other, 4)):
        wanted = tiny()(ids[None]).logits[0, -rows:].softmax(-1)
        assert torch.allclose(side.laws(ids, rows), wanted, atol=1e-8)


def test_what_it_does_not_do_falls_back_and_says_so():
    cases = [(ragged(), {}, "one prompt"), ({"input_ids": prompt()}, {"repetition_penalty": 1.3}, "processors")]
    for inputs, more, told in cases:
        pearl = Pearl(tiny(seed=1), force=True)
        with pytest.warns(UserWarning, match=told):
            found = tiny().generate(**inputs, max_new_tokens=9, **GREEDY, **more, custom_generate=pearl)
        assert torch.equal(found, tiny().generate(**inputs, max_new_tokens=9, **GREEDY, **more))
    pearl = Pearl(tiny(seed=1), 4)  # a draft model as dear as its target cannot win
    with pytest.warns(UserWarning, match="ms a token"):
        tiny().generate(prompt(), max_new_tokens=9, **GREEDY, custom_generate=pearl)
    assert "ms a token" in pearl.told
    with pytest.raises(VistokError, match="at least 2"):
        Pearl(tiny(), 1)


def test_tokens_of_a_round():
    assert tokens_a_round(1.0, 4) == pytest.approx(4.0)
    assert tokens_a_round(0.0, 4) == pytest.approx(1.0)
