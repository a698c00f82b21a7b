"""PEARL: plain decoding's tokens to the last one, the law of sampled ones, and a word where it falls back."""

from __future__ import annotations

import itertools
import os
import signal
import threading

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import SamplingParams, draft_process
from vistok.samplers.parallel import CachedSide, executors, tokens_a_round
from vistok.samplers.pearl import Pearl, interleave

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


class ThreadInPlaceOfProcess:
    """What Popen gives, with the same messages, without a new interpreter."""

    def __init__(self, command, stdin, stdout):
        (source, self.stdin), (self.stdout, sink) = (
            tuple(os.fdopen(end, mode) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True)) for _ in range(2)
        )
        self.thread = threading.Thread(target=self._serve, args=(source, sink), daemon=True)
        self.thread.start()

    def _serve(self, source, sink):
        with source, sink:
            draft_process.serve(source, sink)

    def wait(self):
        self.thread.join()


@pytest.fixture
def threads_for_processes(monkeypatch):
    monkeypatch.setattr(draft_process.subprocess, "Popen", ThreadInPlaceOfProcess)


def test_a_draft_model_elsewhere_gives_the_same_laws_and_tokens(threads_for_processes):
    there = draft_process.DraftProcess(tiny(seed=1))
    here = CachedSide(tiny(seed=1), SamplingParams(temperature=0.7), 32, 23)
    there.begin(SamplingParams(temperature=0.7), 32, 23)
    for ids, rows in ((prompt()[0], 1), (prompt(1, 9)[0], 3), (prompt(1, 9)[0][:4], 1)):
        # The saved model computes rotations in float32, this one from float64 copies.
        assert torch.allclose(there.laws(ids, rows), here.laws(ids, rows), atol=1e-6)
    there.close()
    pearl = Pearl(tiny(seed=1), 3, force=True, processes=True)
    for new in (1, 12):  # the process serves one run behind the other
        found = tiny().generate(prompt(), max_new_tokens=new, **GREEDY, custom_generate=pearl)
        assert torch.equal(found, tiny().generate(prompt(), max_new_tokens=new, **GREEDY))


def test_ids_travel_as_integers(threads_for_processes):
    """Ids that float32 cannot hold arrive whole."""
    there = draft_process.DraftProcess(tiny(seed=1))
    asked = []
    there._ask = lambda message: asked.append(np.frombuffer(message, "<i8")) or b"8" + np.zeros(1).tobytes()
    ids = torch.tensor([2**24 + 1, 2**53 + 1, 7])
    there.laws(ids, 1)
    assert asked[0].tolist() == [1, *ids.tolist()]


def test_a_failure_in_the_process_is_one_sentence(threads_for_processes):
    there = draft_process.DraftProcess(tiny(seed=1)).begin(SamplingParams(), 16, 23)
    with pytest.raises(VistokError, match=r"draft model failed.*32"):
        there.laws(torch.zeros(32, dtype=torch.int64), 1)
    there.close()
    with pytest.raises(VistokError, match=r"has ended.*processes"):
        there.laws(torch.zeros(2, dtype=torch.int64), 1)


@pytest.mark.slow(reason="another interpreter imports torch and transformers")
def test_two_processes_decode_as_one():
    pearl = Pearl(tiny(seed=1), 3, force=True, processes=True)
    found = tiny().generate(prompt(), max_new_tokens=12, **GREEDY, custom_generate=pearl)
    assert torch.equal(found, tiny().generate(prompt(), max_new_tokens=12, **GREEDY))
    assert pearl._process._process.pid != os.getpid() and pearl.told is None
    pearl._process._process.send_signal(signal.SIGINT)  # as a terminal and a notebook do to all of their processes
    again = tiny().generate(prompt(), max_new_tokens=12, **GREEDY, custom_generate=pearl)
    assert torch.equal(again, found)
    pearl._process._process.kill()
    with pytest.raises(VistokError, match="has ended"):
        tiny().generate(prompt(), max_new_tokens=4, **GREEDY, custom_generate=pearl)
