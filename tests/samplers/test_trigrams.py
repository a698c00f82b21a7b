"""ADED: its tri-grams, their published file, and what is drafted from them."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.test_speculation import ragged
from tests.samplers.tiny import VOCABULARY, prompt, tiny
from vistok.errors import VistokError
from vistok.samplers import Aded, Trigrams, generate
from vistok.samplers.policies.trigrams import draft_paths, tree_search, trie

OPTIONS = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}


def test_greedy_tokens_are_those_of_plain_generate():
    model = tiny()
    trigrams = Trigrams.of_texts([row.tolist() for row in prompt(4, 40, 3)])
    for inputs in (ragged(), {"input_ids": prompt(1, 1)}):
        expected = model.generate(**inputs, **OPTIONS)
        for drafter in (Aded(), Aded(trigrams, warm=False), Aded(trigrams, legacy_reward=True), Aded(boost=0.0)):
            assert torch.equal(generate(model, inputs, drafter, **OPTIONS).sequences, expected)


def test_a_text_that_repeats_is_drafted():
    text = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6] * 6])
    drafter = Aded()
    drafter.trigrams.boost(text[0].tolist(), 0.04, 3.0)
    tokens, parents = drafter.drafts(text[0].tolist(), iter([0.5] * 999))
    assert (tokens[0], parents[0]) == (3, -1) and (1, 0) in list(zip(tokens, parents, strict=True))


def test_what_was_learnt_from_a_larger_vocabulary_is_refused_too():
    drafter, small = Aded(), tiny(seed=2, vocab_size=17)
    generate(tiny(), torch.tensor([[3, 1, 21, 22, 1]]), drafter, **OPTIONS)
    with pytest.raises(VistokError, match="another drafter"):
        generate(small, torch.tensor([[3, 1]]), drafter, **OPTIONS)


@pytest.mark.parametrize("sampling", [False, True])
def test_the_drafts_of_a_seed_are_the_same_in_every_run(sampling):
    def stats():
        torch.manual_seed(3)
        return generate(tiny(), ragged(), Aded(), **OPTIONS | {"do_sample": sampling}).stats

    first, second = stats(), stats()
    assert torch.equal(first.step_of, second.step_of) and torch.equal(first.proposed, second.proposed)


def test_a_sure_text_is_rewarded_for_the_token_of_the_step():
    """Behind (0, 1) stands 2 or 3 alike, but only 2 has a future."""
    trigrams = Trigrams({(0, 1): {2: 0.5, 3: 0.5}, (1, 2): {4: 1.0}, (2, 4): {5: 1.0}})
    visits = {tuple(sentence): count for sentence, count in tree_search(trigrams, (0, 1), iter([0.5] * 999), 400)}
    assert visits[1, 2] > visits[1, 3]


def test_the_published_file_round_trips_and_keeps_twelve(tmp_path):
    trigrams = Trigrams.of_texts([list(range(30)) * 2])
    trigrams.save(tmp_path / "store.idx")
    assert Trigrams.load(tmp_path / "store.idx").weights == trigrams.weights
    wide = Trigrams({(1, 2): {token: 1 / 20 + token / 1000 for token in range(20)}})
    wide.save(tmp_path / "wide.idx")
    assert sorted(Trigrams.load(tmp_path / "wide.idx").weights[1, 2]) == list(range(8, 20))


def test_a_tree_has_at_most_so_many_nodes():
    sentences = [[0, a, b, c] for a in range(4) for b in range(4) for c in range(4)]
    paths = draft_paths(sentences, 20)
    assert sum(len(set(path)) for path in paths) <= 20
    tokens, parents = trie(paths, 10)
    assert len(tokens) <= 10 and all(parent < node for node, parent in enumerate(parents))


def broken(tmp_path, data):
    (tmp_path / "store.idx").write_bytes(data)
    return Trigrams.load(tmp_path / "store.idx")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: broken(folder, b""), "no file of tri-grams"),
        (lambda folder: broken(folder, (1).to_bytes(8, "little")), "no file of tri-grams"),
        (lambda folder: broken(folder, bytes(8) + b"more"), "left over"),
        (lambda folder: Trigrams.load(folder / "none"), "no file of tri-grams"),
        (lambda folder: Aded(iterations=0), "at least 1"),
        (
            lambda folder: generate(tiny(), prompt(), Aded(Trigrams({(0, 1): {VOCABULARY: 1.0}})), max_new_tokens=3),
            "its tokenizer",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(tmp_path, make, reason):
    with pytest.raises(VistokError, match=reason):
        make(tmp_path)
