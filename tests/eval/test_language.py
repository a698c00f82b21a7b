"""Statistics of token sequences against plain Python, and against corpora whose figures are known."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.errors import VistokError
from vistok.eval.language import (
    benford_divergence,
    entropy_bits,
    fit_line,
    heaps_fit,
    huffman_bits,
    language_statistics,
    ngram_counts,
    ngram_perplexity,
    ngram_probabilities,
    plot_language,
    types_per_image,
    zipf_fit,
)

CORPUS = st.integers(0, 10**6).map(
    lambda seed: torch.randint(9, (7, 11), generator=torch.Generator().manual_seed(seed))
)


@settings(max_examples=30, deadline=None)
@given(CORPUS, st.integers(1, 5))
def test_ngrams_are_counted_within_pictures(tokens, n):
    rows = tokens.tolist()
    expected = Counter(tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1))
    assert ngram_counts(tokens, n).tolist() == sorted(expected.values(), reverse=True)


def test_ids_of_long_ngrams_do_not_overflow():
    tokens = torch.randint(2**31 - 1, (2, 12), generator=torch.Generator().manual_seed(0))
    assert ngram_counts(torch.cat([tokens, tokens]), 8).tolist() == [2] * 10


@settings(max_examples=30, deadline=None)
@given(CORPUS)
def test_innovation_counts_distinct_tokens_so_far(tokens):
    expected = [len(set(tokens[: i + 1].flatten().tolist())) for i in range(len(tokens))]
    assert types_per_image(tokens).tolist() == expected


def test_known_entropies_and_codes():
    counts = torch.tensor([4, 2, 1, 1])
    assert entropy_bits(counts) == pytest.approx(1.75) and huffman_bits(counts) == 1.75
    assert entropy_bits(counts, miller_madow=True) == pytest.approx(1.75 + 3 / (16 * math.log(2)))
    assert huffman_bits(torch.tensor([5])) == 0 and entropy_bits(torch.tensor([5])) == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=40))
def test_a_huffman_code_is_within_a_bit_of_the_entropy(counts):
    entropy = entropy_bits(torch.tensor(counts))
    assert entropy - 1e-9 <= huffman_bits(torch.tensor(counts)) < entropy + 1


def test_a_power_law_is_found():
    fit = zipf_fit((1e9 * torch.arange(1, 200).double() ** -1.3).round().long())
    assert fit.slope == pytest.approx(-1.3, abs=1e-4) and fit.r2 > 0.9999
    with pytest.raises(VistokError, match="two different points, got 1"):
        fit_line(torch.ones(1), torch.ones(1))


def test_a_vocabulary_that_never_grows_has_beta_zero():
    assert heaps_fit(torch.arange(5).repeat(6, 1)).slope == pytest.approx(0)
    assert heaps_fit(torch.arange(60).view(6, 10)).slope == pytest.approx(1)


def test_benfords_law_has_no_divergence_from_itself():
    law = torch.cat([torch.full((round(1000 * math.log10(1 + 1 / d)),), d) for d in range(1, 10)])
    assert benford_divergence(law) < 1e-4
    assert benford_divergence(torch.full((10,), 9)) == pytest.approx(-math.log2(math.log10(1 + 1 / 9)))


def test_perplexity_of_known_laws():
    generator = torch.Generator().manual_seed(0)
    uniform = torch.randint(8, (400, 50), generator=generator)
    assert ngram_perplexity(uniform[:300], uniform[300:], 1, 8) == pytest.approx(8, rel=0.01)
    # After the first token, each is its predecessor plus one: a bigram model knows it, a unigram model does not.
    chain = (torch.randint(8, (400, 1), generator=generator) + torch.arange(50)) % 8
    assert ngram_perplexity(chain[:300], chain[300:], 2, 8) < 1.1
    assert ngram_perplexity(chain[:300], chain[300:], 1, 8) > 7.5


@settings(max_examples=20, deadline=None)
@given(CORPUS, st.integers(1, 4))
def test_the_ngram_model_is_a_law(tokens, order):
    """Whatever the history, the probabilities of all next tokens add up to one."""
    rows = tokens[:1].repeat(12, 1)
    rows[:, -1] = torch.arange(12)
    last = ngram_probabilities(tokens[1:], rows, order, 12)[:, -1]
    assert last.sum().item() == pytest.approx(1) and (last > 0).all()


def test_statistics_of_a_corpus_and_their_plot(tmp_path):
    tokens = torch.randint(16, (50, 24), generator=torch.Generator().manual_seed(0))
    found = language_statistics(tokens, 32)
    assert found["usage"] == 0.5 and found["types_per_image"][-1] == 16
    assert found["ngrams"][1]["entropy_bits"] == pytest.approx(4, abs=0.05)
    assert abs(found["compression"]) < 0.02 and 15 < found["ngrams"][1]["perplexity"] < 17
    plot_language(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (torch.zeros(3), "statistics need token ids"),
        (torch.zeros(2, 3), "statistics need token ids"),
        (torch.full((2, 3), -1), "at least 0"),
        (torch.zeros(1, 3, dtype=torch.long), "take more"),
    ],
)
def test_what_is_no_corpus_is_refused(tokens, sentence):
    with pytest.raises(VistokError, match=sentence):
        language_statistics(tokens, 8)


def test_tokens_outside_the_codebook_and_too_long_ngrams_are_refused():
    tokens = torch.arange(8).view(2, 4)
    with pytest.raises(VistokError, match="token 7 lies outside the codebook of 7"):
        ngram_perplexity(tokens, tokens, 1, 7)
    with pytest.raises(VistokError, match="5-grams need pictures of at least 5 tokens, got 4"):
        ngram_counts(tokens, 5)
