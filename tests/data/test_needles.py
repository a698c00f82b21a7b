"""Needles in a text: they stand where it is said, whatever the tokenizer, and nowhere else."""

from __future__ import annotations

import pytest
import torch

from vistok.data.needles import WORDS, NeedleText
from vistok.errors import VistokError
from vistok.zoo.transformers import load_text_tokenizer

CORPUS = ["for line in open(path):\n    print(line.strip())\n" * 40]


@pytest.fixture(scope="module")
def text():
    return NeedleText(load_text_tokenizer("text-mini"), CORPUS)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_word_is_one_token_of_the_embedded_model():
    tokenizer = load_text_tokenizer("text-mini")
    assert len(set(WORDS)) == len(WORDS)
    assert all(len(tokenizer(f" {word}").input_ids) == 1 for word in WORDS)


@pytest.mark.parametrize(("length", "needles", "within"), [(64, 1, 1.0), (200, 4, 1.0), (200, 3, 0.25)])
def test_a_needle_stands_in_its_part_of_a_passage_of_the_length_that_was_asked_for(text, length, needles, within):
    for seed in range(20):
        ids, found = text.passage(length, needles, draws(seed), within)
        assert ids.shape == (length,) and len(found) == needles
        for number, needle in enumerate(found):
            line = torch.cat([needle.question, needle.answer])
            assert torch.equal(ids[needle.start : needle.start + len(line)], line)
            assert number - 1 <= needle.start / length / within * needles <= number + 2
        words = [tuple(part.tolist()) for needle in found for part in (needle.question, needle.answer)]
        assert len(set(words)) == 2 * needles


def test_the_same_draws_give_the_same_passage(text):
    one, two, other = (text.passage(100, 2, draws(seed))[0] for seed in (3, 3, 4))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_places_of_a_lesson_stand_before_a_value_that_was_told_before(text):
    for seed in range(20):
        ids, places = text.lesson(160, 5, 3, draws(seed))
        assert ids.shape == (160,) and len(places) == 10
        for place in places.tolist():
            pair = ids[place : place + 2]
            earlier = ids[:place].unfold(0, 2, 1)
            assert (earlier == pair).all(1).any()


@pytest.mark.parametrize(
    ("length", "needles", "named"), [(20, 5, "do not fit"), (4000, 2, "do not fit"), (4000, 200, "words for")]
)
def test_needles_that_do_not_fit_are_refused(text, length, needles, named):
    with pytest.raises(VistokError, match=named):
        text.passage(length, needles, draws(0))


class Letters:
    """A tokenizer of single characters, with a first token that it adds by itself."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True, **options):
        ids = [ord(letter) for letter in text]
        return type("Encoded", (), {"input_ids": [1, *ids] if add_special_tokens else ids})


def test_another_tokenizer_may_cut_words_and_begins_texts_as_it_does():
    text = NeedleText(Letters(), CORPUS)
    ids, (needle,) = text.passage(120, 1, draws(0))
    assert ids[0] == 1 and len(ids) == 120
    line = "".join(map(chr, ids[needle.start :].tolist())).splitlines()[1]
    assert line == "".join(map(chr, [*needle.question.tolist()[1:], *needle.answer.tolist()]))
    assert line.startswith("# code ") and set(line.split()[2:]) <= set(WORDS)
    with pytest.raises(VistokError, match="a token for each"):
        text.lesson(200, 2, 2, draws(0))
