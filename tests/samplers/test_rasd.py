"""RASD: retrieval by suffix match, pruning, and fusing with a draft model's tree."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.samplers.test_speculation import POLICIES, ragged
from tests.samplers.tiny import VOCABULARY, prompt, tiny, tiny_head
from vistok.errors import VistokError
from vistok.samplers import Branching, Chain, Datastore, DraftModel, EagleHead, IndependentChains, Rasd, TokenRecycling
from vistok.samplers.drafters.rasd import fuse
from vistok.samplers.policies.retrieval import GrowingText, sorted_suffixes
from vistok.samplers.speculation import generate

OPTIONS = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0}
TEXTS = [row.tolist() for row in prompt(6, 50, 4)]


class Words:
    """A tokenizer as far as its vocabulary goes."""

    def __init__(self, *words):
        self.words = words

    def get_vocab(self):
        return {word: number for number, word in enumerate(self.words)}


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "independent chains"])
def test_greedy_tokens_are_those_of_plain_generate(name):
    model, expected = tiny(), tiny().generate(**ragged(), **OPTIONS)
    drafter = Rasd(DraftModel(tiny(seed=1), POLICIES[name]), Datastore.of_texts(TEXTS), first=VOCABULARY)
    out = generate(model, ragged(), drafter, **OPTIONS)
    assert torch.equal(out.sequences, expected)


def test_it_takes_an_eagle_head_and_prompts_of_one_token():
    for inputs in (ragged(), {"input_ids": prompt(1, 1)}):
        expected = tiny().generate(**inputs, **OPTIONS)
        assert torch.equal(generate(tiny(), inputs, Rasd(EagleHead(tiny_head())), **OPTIONS).sequences, expected)


def test_a_datastore_that_holds_the_answer_is_followed():
    text = tiny().generate(prompt(), max_new_tokens=40, do_sample=False)
    poor = DraftModel(tiny(seed=1), Chain(1))
    drafter = Rasd(poor, Datastore.of_texts([text[0].tolist()]), retrieved=8, first=VOCABULARY)
    fused = generate(tiny(), prompt(), drafter, max_new_tokens=40, do_sample=False).stats
    alone = generate(tiny(), prompt(), poor, max_new_tokens=40, do_sample=False).stats
    assert fused.mean_accepted_length > 3 > alone.mean_accepted_length


@pytest.mark.parametrize("retrieved", [8, 48])
@pytest.mark.parametrize("policy", [Chain(1), Branching((2, 1)), "auto"], ids=str)
def test_an_eagle_head_of_small_trees_reads_long_retrieved_paths(policy, retrieved):
    """Rows of a batch are at different places when one takes a path that is longer than the trees of the head."""
    options = OPTIONS | {"max_new_tokens": 60}
    expected = tiny().generate(**ragged(), **options)
    store = Datastore.of_texts([expected[-1].tolist()])  # what one of the texts says, to its end
    drafter = Rasd(EagleHead(tiny_head(), policy), store, retrieved=retrieved, first=VOCABULARY)
    out = generate(tiny(), ragged(), drafter, **options)
    assert torch.equal(out.sequences, expected)


def test_paths_follow_the_tree_and_leave_it():
    tokens, parents = [9, 1, 2, 3], [-1, 0, 0, 1]
    paths = [(1, 3, 5), (1, 4), (2, 6, 7), (8,)]
    assert fuse(tokens, parents, paths, 9, None, 0.0) == [(5, 3), (4, 1), (6, 2), (7, 6), (8, 0)]
    assert fuse(tokens, parents, paths, 2, None, 0.0) == [(5, 3), (4, 1)]
    laws = torch.zeros(4, 10)
    laws[0, 1], laws[0, 2], laws[1, 3], laws[1, 4] = 0.5, 0.1, 0.5, 0.05
    assert fuse(tokens, parents, paths, 9, laws, 0.2) == [(5, 3)]


def test_suffixes_are_sorted_and_found():
    tokens = np.random.default_rng(0).integers(0, 4, 400).astype(np.int32)
    order = sorted_suffixes(tokens)
    heads = [tuple(tokens[at : at + 16].tolist()) for at in order]
    assert heads == sorted(heads)
    store, text = Datastore(tokens, order), [0, *tokens[100:103].tolist()]
    for path in store.behind(text, 3, 5, 4):
        assert any(tuple(tokens[at : at + 3 + len(path)]) == (*text[-3:], *path) for at in range(400))
    assert store.behind([7, 8], 2, 5, 4) == []


def test_what_stood_earlier_is_found_latest_first():
    text = GrowingText([1, 2, 3, 1, 2, 4, 1, 2], 3)
    assert text.earlier(5, 2) == ([(4, 1), (3, 1)], 2)
    assert text.earlier(1, 2) == ([(4, 1)], 2)
    for alone in ([5], [1, 2, 3]):
        assert GrowingText(alone, 3).earlier(5, 2) == ([], 0)


@pytest.mark.parametrize("seed", range(4))
def test_a_text_that_grew_finds_what_a_search_of_it_finds(seed):
    tokens, ngram, length = np.random.default_rng(seed).integers(0, 5, 60).tolist(), 4, 3
    text = GrowingText(tokens[:3], ngram)
    for end in range(3, 60):
        text.extend(tokens[end : end + 1])
        known = tokens[: end + 1]
        found, size = text.earlier(100, length)
        ends = {n: [at for at in range(n, len(known)) if known[at - n : at] == known[-n:]] for n in range(1, ngram + 1)}
        assert size == max((n for n, at in ends.items() if at), default=0)
        assert found == list(dict.fromkeys(tuple(known[at : at + length]) for at in reversed(ends.get(size, []))))


def test_a_datastore_round_trips_and_that_of_rest_is_read(tmp_path):
    store = Datastore.of_texts(TEXTS, Words("a", "b"))
    store.save(tmp_path / "store.safetensors")
    found = Datastore.load(tmp_path / "store.safetensors")
    parts = [part.astype("<i4").tobytes() for part in (store.tokens, store.order)]
    (tmp_path / "rest.idx").write_bytes(b"".join(len(part).to_bytes(4, "little") + part for part in parts))
    for other in (found, Datastore.load(tmp_path / "rest.idx")):
        assert np.array_equal(other.tokens, store.tokens) and np.array_equal(other.order, store.order)
    assert found.tokenizer == store.tokenizer


def loaded(folder, data):
    (folder / "store.idx").write_bytes(data)
    return Datastore.load(folder / "store.idx")


def run(drafter, **options):
    return generate(tiny(), prompt(), drafter, max_new_tokens=4, **options)


SMALL = DraftModel(tiny(seed=1), Branching((2, 1)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda f: Datastore.of_texts([]), "at least one token"),
        (lambda f: loaded(f, b"\x04\0\0\0"), "no datastore"),
        (lambda f: loaded(f, b"\x04\0\0\0\1\0\0\0"), "1 parts"),
        (lambda f: Datastore.load(f / "none.safetensors"), "no datastore"),
        (lambda f: run(Rasd(SMALL, Datastore.of_texts([[1, VOCABULARY]]))), "another tokenizer"),
        (lambda f: run(Rasd(SMALL, Datastore.of_texts(TEXTS, Words("a"))), tokenizer=Words("b")), "another tokenizer"),
        (lambda f: run(Rasd(TokenRecycling())), "which TokenRecycling has not"),
        (lambda f: run(Rasd(DraftModel(tiny(seed=1), IndependentChains(2, 2))), do_sample=True), "independent chains"),
        (lambda f: Rasd(SMALL, retrieved=0), "at least 1"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(tmp_path, make, reason):
    with pytest.raises(VistokError, match=reason):
        make(tmp_path)
