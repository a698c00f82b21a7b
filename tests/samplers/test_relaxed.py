"""LANTERN: neighbours, the law that relaxed acceptance has, and where its total variation stays within the bound."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy.stats import chi2

from vistok.errors import VistokError
from vistok.ops import draw
from vistok.samplers.noise import Noise
from vistok.samplers.tree import TokenTree, TreeShape
from vistok.samplers.verifiers.relaxed import LatentNeighbours, RelaxedTree, nearest_codes
from vistok.samplers.verifiers.walk import walk_tree

SIZE, TRIALS = 8, 50_000
ONE = TreeShape.chain_of(2)


def laws():
    generator = torch.Generator().manual_seed(3)
    p, q = torch.randn(2, SIZE, generator=generator, dtype=torch.float64).softmax(-1)
    return p, q, nearest_codes(torch.randn(SIZE, 3, generator=generator), SIZE - 1)


def outcome(rule, p, q, draft):
    """Tokens decided when a draft [TRIALS] is tested once."""
    uniforms = Noise(5, torch.arange(TRIALS)).uniform(torch.zeros(TRIALS, 3, dtype=torch.int64), 0, torch.arange(3))
    tokens = torch.stack([torch.zeros_like(draft), draft], 1)
    rows, laws = p.expand(TRIALS, -1), None if q is None else q.expand(TRIALS, 2, -1)
    walk = walk_tree(ONE, tokens, lambda node: rows, laws, rule, uniforms[:, :1])
    return torch.where(walk.count > 1, draft, draw(walk.law, uniforms[:, 1]))


def p_value(tokens, law):
    counts = torch.bincount(tokens, minlength=SIZE).double()
    used = law > 0
    assert not counts[~used].any()
    statistic = ((counts - law * TRIALS) ** 2 / (law * TRIALS))[used].sum()
    return float(chi2.sf(float(statistic), int(used.sum()) - 1))


def moved_law(rule, p, token):
    """p with the mass of the lenders moved onto the token."""
    mass, near, lends = rule.borrowed(p[None], torch.tensor([token]))
    law = p.clone()
    law[near[0][lends[0]]] = 0
    law[token] = p[token] + mass[0]
    return law


@pytest.mark.parametrize(("mode", "bound"), [("additive", 0.2), ("additive", 0.5), ("multiplicative", 3.0)])
def test_a_deterministic_draft_has_the_moved_law(mode, bound):
    p, _, near = laws()
    rule = LatentNeighbours(near, 4, bound, mode)
    for token in range(0, SIZE, 3):
        law = moved_law(rule, p, token)
        assert p_value(outcome(rule, p, None, torch.full((TRIALS,), token)), law) > 1e-4
        distance = float((law - p).abs().sum() / 2)
        assert distance <= (bound if mode == "additive" else (bound - 1) * float(p[token])) + 1e-12


def test_a_sampled_draft_has_the_closed_form_law():
    p, q, near = laws()
    rule = LatentNeighbours(near, 4, 0.3)
    every = torch.arange(SIZE)
    own = rule.relaxed(p.expand(SIZE, -1), every)
    state = rule.enter(p.expand(SIZE, -1), q.expand(SIZE, -1), torch.ones_like(every))
    rest = rule.law(rule.test(state, every, torch.ones(SIZE, dtype=torch.float64))[1])
    law = torch.minimum(q, own) + ((q - own).clamp(min=0)[:, None] * rest).sum(0)
    uniforms = Noise(9, torch.arange(TRIALS)).uniform(torch.zeros(TRIALS, dtype=torch.int64), 0)
    draft = draw(q.expand(TRIALS, -1), uniforms)
    assert p_value(outcome(rule, p, q, draft), law) > 1e-4


def by_tests(rule, p, candidates):
    """The law of the token behind a node whose children are tested one after the other."""
    state, reached, law = rule.enter(p[None], None, None), 1.0, torch.zeros_like(p)
    for token in candidates:
        chance = min(1.0, float(rule.relaxed(state[0], torch.tensor([token]))))
        law[token] += reached * chance
        reached *= 1 - chance
        state = rule.test(state, torch.tensor([token]), torch.ones(1, dtype=p.dtype))[1]
    return law + reached * rule.law(state)[0]


@pytest.mark.parametrize(("mode", "bound"), [("additive", 0.0), ("additive", 0.3), ("multiplicative", 3.0)])
def test_one_draw_a_node_decides_as_the_tests_of_its_children_do(mode, bound):
    p, _, near = laws()
    rule, shape = LatentNeighbours(near, 4, bound, mode), TreeShape.of_paths([(0,), (1,), (2,), (1, 0)])
    drawn = torch.arange(SIZE)[:, None].expand(-1, shape.nodes)
    for children in ([2, 5, 1], [7, 0, 3]):
        tree = TokenTree(torch.tensor([[0, *children, 6]]).expand(SIZE, -1), shape)
        wanted = rule.taken(tree, p.expand(SIZE, shape.nodes, -1), drawn)
        for node, candidates in ((0, children), (2, [6]), (4, [])):
            law = torch.zeros_like(p).index_add(0, wanted[:, node], p)
            torch.testing.assert_close(law, by_tests(rule, p, candidates))


def test_a_sampled_draft_has_no_bound():
    """The counter-example: drafts on the neighbours of what the target wants all pass."""
    codes = torch.stack([torch.arange(20) // 2 * 10.0, torch.arange(20) % 2 * 1.0], 1)
    p = (torch.arange(20) % 2 == 0).double() / 10
    rule = LatentNeighbours(nearest_codes(codes, 1), 1, 0.1)
    drafts = torch.arange(1, 20, 2)  # each the neighbour of a wanted code
    assert torch.allclose(rule.relaxed(p.expand(10, -1), drafts), torch.full((10,), 0.1, dtype=torch.float64))


def test_acceptance_grows_with_k_and_with_the_bound():
    p, _, near = laws()
    every = torch.arange(SIZE)
    for settings in ([(k, 0.3) for k in range(SIZE - 1)], [(5, bound / 10) for bound in range(11)]):
        chances = [LatentNeighbours(near, *one).relaxed(p.expand(SIZE, -1), every).mean() for one in settings]
        assert all(a <= b + 1e-12 for a, b in pairwise(chances))


def test_neighbours_are_the_nearest_other_codes():
    codes = torch.tensor([[0.0], [1.0], [3.0], [3.5]])
    assert nearest_codes(codes, 2).tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(50, 4, generator=generator)
    assert torch.equal(nearest_codes(codes, 7, chunk=16), nearest_codes(codes, 49)[:, :7])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"k": 4, "bound": 1.5}, "multiplicative"),
        ({"k": 4, "bound": 0.5, "mode": "multiplicative"}, "at least 1"),
        ({"k": -1, "bound": 0.5}, "k >= 0"),
        ({"k": 4, "bound": 0.5, "mode": "aditive"}, "did you mean additive"),
        ({"k": 4, "bound": 0.5, "residual": "code"}, "known: paper, reference"),
        ({"k": 9, "bound": 0.5}, "9 are needed"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, reason):
    with pytest.raises(VistokError, match=reason):
        RelaxedTree(torch.zeros(SIZE, 7, dtype=torch.int64), **options)
