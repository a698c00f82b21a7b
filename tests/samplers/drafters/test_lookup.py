"""Prompt lookup against plain Python."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.samplers.drafters.lookup import continuation


def latest_occurrence(text: list[int], ngram: int, drafts: int) -> tuple[int, int]:
    for size in range(min(ngram, len(text) - 1), 0, -1):
        for end in range(len(text) - 1, size - 1, -1):
            if text[end - size : end] == text[-size:]:
                return end, min(drafts, len(text) - end)
    return 0, 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 5),
)
def test_lookup_finds_the_latest_of_the_longest(texts, ngram, drafts):
    rows = torch.full((len(texts), 16), 1)
    for row, text in zip(rows, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    size = torch.tensor([len(text) for text in texts])
    place, known = continuation(rows, size, ngram, drafts)
    for i, text in enumerate(texts):
        end, count = latest_occurrence(text, ngram, drafts)
        assert int(known[i]) == count
        assert not count or int(place[i]) == end
