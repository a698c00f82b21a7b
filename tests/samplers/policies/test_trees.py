"""Single pieces of the tree policies, against plain Python."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from vistok.ops.tree import PADDING
from vistok.samplers import TREE_2_2_2, best_tree
from vistok.samplers.policies.dynamic import Looked
from vistok.samplers.policies.dyspec import heavy_first
from vistok.samplers.policies.rsd import beam_step, gumbel_top_k
from vistok.samplers.policies.trees import check_paths


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


def looked_at(score):
    """Two nodes below the root, and two below each of them."""
    return Looked(
        torch.arange(6)[None] + 10,
        torch.tensor([score]),
        torch.tensor([[-1, -1, 0, 0, 1, 1]]),
        torch.tensor([1, 1, 2, 2, 2, 2]),
    )


def tree_of(score, drafts, least=0.0):
    run = SimpleNamespace(root=torch.tensor([[5]]))
    tree, number = looked_at(score).tree(run, drafts, least)
    return tree.shape.parents[0].tolist(), number[0].tolist()


def test_a_dynamic_tree_holds_the_best_paths_and_what_leads_to_them():
    assert tree_of([-0.1, -3.0, -0.2, -2.0, -3.1, -9.0], 3) == ([-1, 0, 1, 1], [0, 2, 3])
    assert tree_of([-0.1, -3.0, -0.2, -2.0, -3.1, -9.0], 6, least=0.1) == ([-1, 0, 1, 1], [0, 2, 3])
    assert tree_of([-5.0, -6.0, -7.0, -7.0, -8.0, -8.0], 6, least=0.5) == ([-1, 0], [0])
    for drafts in range(1, 7):  # all are certain
        parents, number = tree_of([0.0] * 6, drafts)
        assert len(number) == drafts and parents[0] == -1
        assert all(parent == PADDING or 0 <= parent < node for node, parent in enumerate(parents) if node)


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
