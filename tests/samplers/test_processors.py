"""Logits processors that remember, or are defined on allowed text only, see what they see in plain decoding.

Greedy tokens and the calls themselves are compared with plain ``generate``; sampled tokens with their exact joint law.
Versions that are broken on purpose must fail by the same tests.
"""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from scipy.stats import chi2
from transformers import LogitsProcessorList, UnbatchedClassifierFreeGuidanceLogitsProcessor, WatermarkLogitsProcessor
from transformers.generation import (
    NoRepeatNGramLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
)

from tests.samplers.test_speculation import SMALL_TREE, drafters, ragged
from tests.samplers.tiny import VOCABULARY, prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import (
    Branching,
    Chain,
    Constrained,
    DraftModel,
    PromptLookup,
    Speculation,
    TokenRecycling,
    generate,
    processors,
)
from vistok.samplers.run import Run
from vistok.samplers.tree import LawKind
from vistok.samplers.verifiers.candidates import TreeVerifier
from vistok.samplers.verifiers.exact import ExactChain
from vistok.samplers.verifiers.relaxed import RelaxedTree, nearest_codes
from vistok.samplers.verifiers.rules import KSequential


class Automaton:
    """Allows token v in state s where ``table[s][v] >= 0``, which is the next state; knows no other tokens."""

    def __init__(self, table):
        self.table = table

    def start(self):
        return 0

    def allowed(self, state):
        return torch.tensor([following >= 0 for following in self.table[state]])

    def advance(self, state, token):
        assert self.table[state][token] >= 0, "a forbidden token was shown"
        return self.table[state][token]


class Diary:
    """A user's own class: it remembers its last text, wants it to grow by one token, and turns logits by how long it
    has lived."""

    def __init__(self):
        self.seen = []

    def __call__(self, input_ids, scores):
        if self.seen:
            assert torch.equal(input_ids[:, :-1], self.seen[-1]), "a text that does not go on from the last one"
        self.seen.append(input_ids.clone())
        turned = scores.roll(len(self.seen) % scores.shape[1], 1)
        return scores + 0.5 * turned


def every_third(size):
    """Token v may be followed by v + 1, v + 2 and so on, three of them; the first may be any."""
    table = [list(range(1, size + 1))]
    table += [[w + 1 if (w - v) % size in (1, 2, 4) else -1 for w in range(size)] for v in range(size)]
    return Automaton(table)


def watermark(size):
    return WatermarkLogitsProcessor(size, "cpu", greenlist_ratio=0.5, bias=3.0, context_width=1)


def synth(size):
    return SynthIDTextWatermarkLogitsProcessor(
        ngram_len=3,
        keys=[5, 7, 11],
        sampling_table_size=64,
        sampling_table_seed=0,
        context_history_size=8,
        device="cpu",
    )


# Processors of a run, given the model, its vocabulary and the columns of its prompts.
MAKERS = {
    "guidance": lambda model, size, columns: [UnbatchedClassifierFreeGuidanceLogitsProcessor(2.0, model)],
    "watermark": lambda model, size, columns: [watermark(size)],
    "synthid": lambda model, size, columns: [synth(size)],
    "grammar": lambda model, size, columns: [Constrained(every_third(size), columns)],
    "prefix function": lambda model, size, columns: [
        PrefixConstrainedLogitsProcessor(lambda row, ids: [(int(ids[-1]) + i) % size for i in (1, 2, 4)], 1)
    ],
    "own class": lambda model, size, columns: [Diary()],
    "several": lambda model, size, columns: [NoRepeatNGramLogitsProcessor(2), Diary(), watermark(size)],
}
SMALL = ("recycling", "lookup", "chain", "branching", "none")


def runs(name, drafter, inputs, **options):
    """Plain tokens and speculation's, and the processors of both."""
    model = tiny()
    options = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0, **options}
    found = []
    for way in ({}, {"custom_generate": Speculation(drafter)}):
        made = MAKERS[name](model, VOCABULARY, inputs["input_ids"].shape[1])
        found.append((model.generate(**inputs, **options, **way, logits_processor=LogitsProcessorList(made)), made))
    return found


@pytest.mark.parametrize("drafter", SMALL)
@pytest.mark.parametrize("name", MAKERS)
def test_greedy_tokens_are_those_of_plain_generate(name, drafter):
    for inputs in ({"input_ids": prompt(), "attention_mask": torch.ones(1, 7, dtype=torch.int64)}, ragged()):
        (plain, _), (found, _) = runs(name, drafters()[drafter], inputs)
        assert torch.equal(found, plain)


@pytest.mark.parametrize("inputs", [{"input_ids": prompt()}, ragged()], ids=["alone", "batch"])
def test_a_class_of_ones_own_is_called_as_plain_generate_calls_it(inputs):
    """Every call, with every row of it, also behind the end of sequences."""
    (plain, _), _ = runs("own class", None, inputs)
    ends = [int(plain[0, 7 + 5]), int(plain[-1, 7 + 9])]
    (plain, (diary,)), (found, (other,)) = runs("own class", TokenRecycling(SMALL_TREE), inputs, eos_token_id=ends)
    assert torch.equal(found, plain)
    assert len(diary.seen) == len(other.seen)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(diary.seen, other.seen, strict=True))


def test_options_of_generate_that_make_such_processors():
    inputs, options = ragged(), {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    for more in (
        {"guidance_scale": 1.7},
        {"guidance_scale": 1.7, "negative_prompt_ids": prompt(3, 4, 5)},
        {"prefix_allowed_tokens_fn": lambda row, ids: [(int(ids[-1]) + row + i) % VOCABULARY for i in (1, 3)]},
        {"exponential_decay_length_penalty": (3, 1.4), "eos_token_id": 5},
        {"forced_eos_token_id": 3, "min_new_tokens": 4, "eos_token_id": 3},
    ):
        plain = tiny().generate(**inputs, **options, **more)
        assert torch.equal(generate(tiny(), inputs, TokenRecycling(SMALL_TREE), **options, **more).sequences, plain)


def test_a_grammar_sees_nothing_behind_an_end_token():
    """State 3 has no continuation at all: asked there, the constraint refuses."""
    table = [[1] * VOCABULARY, [2] * VOCABULARY, [3 if v == 4 else 2 for v in range(VOCABULARY)], [-1] * VOCABULARY]
    for inputs in ({"input_ids": prompt()}, ragged()):
        options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 4}
        made = LogitsProcessorList([Constrained(Automaton(table), 7, ends=(4,))])
        bias = {(4,): 30.0}
        plain = tiny().generate(**inputs, **options, sequence_bias=bias, logits_processor=made)
        found = generate(tiny(), inputs, PromptLookup(4), **options, sequence_bias=bias, logits_processor=made)
        assert torch.equal(found.sequences, plain)


def test_a_constraint_that_allows_nothing_is_told():
    made = LogitsProcessorList([Constrained(Automaton([[1] * VOCABULARY, [-1] * VOCABULARY]), 7)])
    with pytest.raises(VistokError, match="Automaton allows no token"):
        generate(tiny(), prompt(), PromptLookup(), max_new_tokens=4, do_sample=False, logits_processor=made)


def test_relaxed_verification_goes_along_the_path_too():
    near = nearest_codes(tiny().get_input_embeddings().weight, 2)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    made = lambda: LogitsProcessorList([Diary()])  # noqa: E731
    plain = tiny().generate(prompt(), **options, logits_processor=made())
    exact = RelaxedTree(near, 2, 0.0)
    found = generate(tiny(), prompt(), TokenRecycling(SMALL_TREE), exact, **options, logits_processor=made())
    assert torch.equal(found.sequences, plain)
    relaxed = RelaxedTree(near, 2, 1.0)
    found = generate(tiny(), prompt(), TokenRecycling(SMALL_TREE), relaxed, **options, logits_processor=made())
    assert found.sequences.shape == plain.shape


# Sampling: the joint law of four tokens from a vocabulary of three, with the processors called in turn.

SIZE, LENGTH, BATCH, RUNS = 3, 4, 6, 260
START = torch.tensor([[1, 2, 0, 1]])
GRAMMAR = Automaton([[1, 2, 1], [-1, 2, 0], [0, 1, -1]])
SAMPLED = {
    "bias": lambda model, size, columns: [
        SequenceBiasLogitsProcessor([[[0, 1], 3.0], [[1, 2], 3.0], [[2, 2], -4.0], [[2, 0, 1], 2.0]])
    ],
    **{name: MAKERS[name] for name in ("guidance", "watermark", "own class")},
    "grammar": lambda model, size, columns: [Constrained(GRAMMAR, columns)],
    "prefix function": lambda model, size, columns: [
        PrefixConstrainedLogitsProcessor(lambda row, ids: [0, int(ids[-1])] if int(ids[-2]) else [1, 2], 1)
    ],
}


def target():
    return tiny(seed=0, vocab_size=SIZE)


@functools.cache
def joint(name: str) -> torch.Tensor:
    """Probability of every sequence, [SIZE ** LENGTH]."""
    chances = []
    with torch.inference_mode():
        for cell in itertools.product(range(SIZE), repeat=LENGTH):
            made = LogitsProcessorList(SAMPLED[name](target(), SIZE, START.shape[1]))
            text, chance = START, 1.0
            for token in cell:
                law = made(text, target()(text).logits[:, -1].float()).double().softmax(-1)
                chance *= float(law[0, token])
                if chance == 0:
                    break
                text = torch.cat([text, torch.tensor([[token]])], 1)
            chances.append(chance)
    return torch.tensor(chances, dtype=torch.float64)


def p_value(name: str, drafter, verifier=None, seed: int = 0, batch: int = BATCH, runs: int = RUNS) -> float:
    torch.manual_seed(seed)
    counts = torch.zeros(SIZE**LENGTH, dtype=torch.float64)
    place = SIZE ** torch.arange(LENGTH - 1, -1, -1)
    options = {"max_new_tokens": LENGTH, "do_sample": True, "top_k": 0, "pad_token_id": 0}
    for _ in range(runs):
        made = LogitsProcessorList(SAMPLED[name](target(), SIZE, START.shape[1]))
        inputs = {"input_ids": START.expand(batch, -1), "attention_mask": torch.ones(batch, START.shape[1])}
        found = generate(target(), inputs, drafter, verifier, **options, logits_processor=made)
        cells = (found.sequences[:, START.shape[1] :] * place).sum(1)
        counts += torch.bincount(cells, minlength=len(counts))
    expected = joint(name) * counts.sum()
    if bool((counts[expected == 0] > 0).any()):
        return 0.0  # a forbidden text
    rare = expected < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([expected[~rare], expected[rare].sum()[None]])
    used = expected > 1e-6
    statistic = float(((observed - expected) ** 2 / expected.clamp(min=1e-9))[used].sum())
    return float(chi2.sf(statistic, int(used.sum()) - 1))


def small():
    return tiny(seed=1, vocab_size=SIZE)


TREE = ((0,), (1,), (0, 0), (0, 1), (1, 0))
COMPOSITIONS = {
    "recycling, match": lambda: (TokenRecycling(TREE), None),
    "branching, recursive": lambda: (DraftModel(small(), Branching((2, 2))), None),
    "chain, exact": lambda: (DraftModel(small(), Chain(3)), ExactChain()),
    "chain, k-sequential": lambda: (
        DraftModel(small(), Chain(2)),
        TreeVerifier(KSequential(), frozenset({LawKind.INDEPENDENT})),
    ),
}


@pytest.mark.slow  # 5 to 10 s each on a busy machine: whole generations, six texts at a time
@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_tokens_follow_the_joint_law(name, composition):
    found = [p_value(name, *COMPOSITIONS[composition]())]
    if found[0] < 1e-2:  # a second seed, before calling it biased
        found.append(p_value(name, *COMPOSITIONS[composition](), seed=1))
    assert min(found) > 1e-5 and max(found) > 1e-2, found


@pytest.mark.parametrize(("name", "composition"), [("own class", "branching, recursive"), ("grammar", "chain, exact")])
def test_sampled_tokens_follow_the_joint_law_quick(name, composition):
    assert p_value(name, *COMPOSITIONS[composition](), runs=50) > 1e-4


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("name", ["bias", "grammar"])
def test_rows_that_go_their_own_pace_follow_the_joint_law(name, composition):
    found = [p_value(name, *COMPOSITIONS[composition](), seed=seed, batch=2000, runs=1) for seed in range(2)]
    assert min(found) > 1e-5 and max(found) > 1e-2, found


# Broken on purpose.


class EveryNodeAtOnce(processors.TextProcessing):
    """Asks about a node with the text of the root alone, as if drafts did not count."""

    def behind(self, run, tree, node, logits):
        return super().behind(run, tree, torch.where(node >= 0, 0, -1), logits)


def broken(monkeypatch, how):
    if how == "text of the root":
        monkeypatch.setattr("vistok.samplers.speculation.TextProcessing", EveryNodeAtOnce)
    elif how == "every row at its own pace":
        monkeypatch.setattr("vistok.samplers.processors.from_transformers", lambda thing, names: True)
    else:
        monkeypatch.setattr(Run, "halts", lambda self, level, token, asked, took: torch.zeros_like(took))


@pytest.mark.parametrize("how", ["text of the root", "every row at its own pace", "nobody halts"])
def test_broken_processing_is_caught_by_its_calls(how, monkeypatch):
    broken(monkeypatch, how)
    try:
        (plain, (diary,)), (found, (other,)) = runs("own class", TokenRecycling(SMALL_TREE), ragged())
        same = torch.equal(found, plain) and len(diary.seen) == len(other.seen)
    except (AssertionError, RuntimeError):
        same = False
    assert not same


@pytest.mark.parametrize("composition", ["branching, recursive", "chain, exact"])
def test_drafts_that_do_not_count_are_caught_by_the_law(composition, monkeypatch):
    broken(monkeypatch, "text of the root")
    assert p_value("bias", *COMPOSITIONS[composition](), batch=2000, runs=1) < 1e-6
