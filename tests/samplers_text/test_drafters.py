"""Single pieces of the text drafters, against plain Python."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data import text as stdlib
from vistok.errors import VistokError
from vistok.samplers import TREE_2_2_2, TokenRecycling, best_tree
from vistok.samplers.drafters.lookup import continuation
from vistok.samplers.policies.dyspec import heavy_first
from vistok.samplers.policies.rsd import beam_step, gumbel_top_k
from vistok.samplers.policies.trees import check_paths


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


def test_the_last_of_equal_tokens_renews_the_matrix():
    drafter = TokenRecycling(((0,), (1,)))
    drafter.adjacency = torch.zeros(5, 2, dtype=torch.int64)
    logits = torch.eye(5)[[0, 1, 2]] + torch.eye(5)[[4, 4, 4]] * 0.5
    drafter.renew(torch.tensor([3, 1, 3]), logits)
    assert drafter.adjacency.tolist() == [[0, 0], [1, 4], [0, 0], [2, 4], [0, 0]]


def test_best_tree_is_the_best_of_all_trees():
    accuracy = [[0.5, 0.2, 0.1], [0.6, 0.25, 0.05], [0.3, 0.2, 0.1]]
    paths = [p for d in (1, 2, 3) for p in itertools.product(range(3), repeat=d)]
    worth = {p: torch.tensor([accuracy[d][r] for d, r in enumerate(p)]).prod().item() for p in paths}
    for drafts in (1, 4, 9, 20, 39):
        tree = best_tree(accuracy, drafts)
        check_paths(tree)
        best = sum(sorted(worth.values(), reverse=True)[:drafts])
        assert sum(worth[path] for path in tree) == pytest.approx(best, abs=1e-6)


def test_the_published_tree_has_its_levels():
    check_paths(TREE_2_2_2)
    assert [sum(len(path) == d for path in TREE_2_2_2) for d in range(1, 7)] == [8, 21, 25, 15, 8, 3]


def test_heavy_subtrees_come_first():
    #       0
    #    1     2
    #         3 4
    #           5
    assert heavy_first([-1, 0, 0, 2, 2, 4]) == [0, 2, 4, 5, 3, 1]


def test_beams_of_one_root_are_gumbel_top_k():
    generator = torch.Generator().manual_seed(0)
    law = torch.rand(3, 1, 8, generator=generator, dtype=torch.float64)
    law = law / law.sum(-1, keepdim=True)
    noise = -(-torch.rand(3, 1, 8, generator=generator, dtype=torch.float64).log()).log()
    zero = torch.zeros(3, 1, dtype=torch.float64)
    beams = beam_step(zero, zero, law, noise, 4)
    assert torch.equal(beams.token, gumbel_top_k(law, noise, 4)[:, 0])
    assert torch.equal(beams.perturbed[:, 0], zero[:, 0])
    assert bool((beams.perturbed.diff(dim=1) <= 0).all())


def test_the_corpus_is_split_by_name_and_speaks_python():
    held_out = {module.name: module for module in stdlib.modules("held-out")}
    train = {module.name for module in stdlib.modules("train")}
    assert held_out and not train & set(held_out)
    assert 8 < len(train) / len(held_out) < 60
    documented = [module for module in held_out.values() if module.documentation]
    assert documented and "    def " in documented[0].source + "    def "
    assert not any("test" in name.split(".") for name in train)
    with pytest.raises(VistokError, match="held-out"):
        next(stdlib.modules("validation"))
