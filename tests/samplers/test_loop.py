"""The loop: what it decides does not depend on the batch, greedy decoding is one and the same, statistics add up."""

from __future__ import annotations

import pytest
import torch

from tests.samplers.toy import TableDrafter, decode
from vistok.errors import VistokError
from vistok.samplers import SAMPLERS, SamplingParams, Stats
from vistok.samplers.cost import best_window
from vistok.samplers.drafters.jacobi import JacobiWindow, SpeculativeJacobi
from vistok.samplers.drafters.plain import Draw, NoDraft
from vistok.samplers.loop import check_composition
from vistok.samplers.tree import LawKind, TreeShape
from vistok.samplers.verifiers.candidates import SampleMatch, TreeVerifier, exact_tree
from vistok.samplers.verifiers.exact import ExactChain
from vistok.samplers.verifiers.relaxed import RelaxedTree
from vistok.samplers.verifiers.rules import KSequential, RecursiveRejection

TREE = TreeShape.of_paths([(0,), (1,), (0, 0), (0, 1), (1, 0)])
MAKERS = {
    "ar": lambda: (NoDraft(), Draw()),
    "published": lambda: (JacobiWindow(6, 5, "repeat-left", False), ExactChain()),
    "coupled": lambda: (JacobiWindow(6, 5, "sample-up"), ExactChain()),
    "tree": lambda: (TableDrafter(TREE, LawKind.DETERMINISTIC, 4), SampleMatch()),
    "sampled-tree": lambda: (
        TableDrafter(TREE, LawKind.WITHOUT_REPLACEMENT, 4),
        exact_tree(LawKind.WITHOUT_REPLACEMENT),
    ),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_sample_is_the_same_alone_and_in_any_batch(name):
    params = SamplingParams(guidance=2.0, guidance_interval=9, top_k=3)
    many, stats, _ = decode(*MAKERS[name](), law=params, batch=5)
    for sample in (0, 3):
        alone, own, _ = decode(*MAKERS[name](), law=params, batch=1, samples=torch.tensor([sample]))
        assert torch.equal(alone[0], many[sample])
        assert torch.equal(own.step_of[0], stats.step_of[sample])


@pytest.mark.parametrize("name", MAKERS)
def test_greedy_decoding_is_the_same_with_every_draft(name):
    params = SamplingParams(greedy=True)
    plain, _, _ = decode(*MAKERS["ar"](), law=params, batch=4, length=30)
    drafted, stats, target = decode(*MAKERS[name](), law=params, batch=4, length=30)
    assert torch.equal(plain, drafted)
    assert int(stats.forwards.max()) == target.forwards <= 29


def test_jacobi_windows_decode_greedily_in_fewer_passes():
    _, stats, _ = decode(*MAKERS["coupled"](), law=SamplingParams(greedy=True), batch=8, length=60)
    assert stats.mean_accepted_length > 1


@pytest.mark.parametrize(("window", "factor"), [(16, 1.3), (64, 2.0)])
def test_coupling_decides_more_tokens_in_a_pass(window, factor):
    length = {}
    for coupled in (False, True):
        drafter = JacobiWindow(window, 16, "uniform", coupled)
        _, stats, _ = decode(drafter, ExactChain(), batch=10, length=256, vocabulary=64, scale=0.6)
        length[coupled] = stats.mean_accepted_length
    assert length[True] > factor * length[False]


def test_statistics_derive_from_the_steps():
    stats = Stats(torch.tensor([[0, 1, 1, 2, 2, 2], [0, 1, 2, 3, 4, 4]]), torch.tensor([6, 12]), seconds=2.0)
    assert stats.forwards.tolist() == [2, 4] and stats.accepted.tolist() == [3, 1]
    assert stats.emitted(0) == [2, 3] and stats.emitted(1) == [1, 1, 1, 2]
    assert stats.mean_accepted_length == pytest.approx(10 / 6)
    assert stats.acceptance_by_position == pytest.approx([3 / 6, 1 / 6])
    assert stats.step_map(0).tolist() == [1, 2, 2, 3, 3, 3]
    both = Stats.merged([stats, stats])
    assert both.mean_accepted_length == stats.mean_accepted_length and both.seconds == 4.0
    assert both.summary()["target_forwards"] == 3.0


def test_a_run_counts_what_it_proposed_and_kept():
    tokens, stats, _ = decode(*MAKERS["coupled"](), batch=6, length=40)
    assert tokens.shape == (6, 40)
    assert torch.equal(stats.step_of, stats.step_of.cummax(1).values) and bool((stats.step_of[:, 0] == 0).all())
    assert bool((stats.accepted <= stats.proposed).all()) and 0 < stats.acceptance_rate < 1


def test_a_run_reports_progress_to_the_end():
    gained = []
    from tests.samplers.toy import TableTarget
    from vistok.samplers import Noise, loop

    params = SamplingParams()
    loop.decode(TableTarget(params, 3, 24, 4), *MAKERS["coupled"](), params, Noise(0, torch.arange(3)), gained.append)
    assert sum(gained) == 24 and min(gained) > 0


@pytest.mark.parametrize(
    ("kind", "verifier"),
    [
        (LawKind.DETERMINISTIC, exact_tree(LawKind.WITHOUT_REPLACEMENT)),
        (LawKind.INDEPENDENT, exact_tree(LawKind.WITHOUT_REPLACEMENT)),
        (LawKind.WITHOUT_REPLACEMENT, exact_tree(LawKind.INDEPENDENT)),
        (LawKind.WITHOUT_REPLACEMENT, TreeVerifier(KSequential(), frozenset({LawKind.INDEPENDENT}))),
        (LawKind.STALE, RelaxedTree(torch.zeros(4, 1, dtype=torch.int64), 1, 0.1)),
    ],
)
def test_a_composition_that_would_bias_is_refused(kind, verifier):
    with pytest.raises(VistokError, match="would bias the output with drafts that were"):
        check_composition(TableDrafter(TREE, kind, 4), verifier)


def test_a_chain_verifier_refuses_trees():
    with pytest.raises(VistokError, match="proposes trees"):
        check_composition(TableDrafter(TREE, LawKind.INDEPENDENT, 4), ExactChain())


def test_the_loop_checks_the_composition():
    verifier = TreeVerifier(RecursiveRejection(False), frozenset({LawKind.WITHOUT_REPLACEMENT}))
    with pytest.raises(VistokError, match="would bias"):
        decode(TableDrafter(TREE, LawKind.DETERMINISTIC, 4), verifier)


def test_names_and_options_are_checked():
    assert SAMPLERS["sjd"] is SpeculativeJacobi
    with pytest.raises(VistokError, match="did you mean sjd"):
        SAMPLERS["sdj"]
    with pytest.raises(VistokError, match="did you mean coupled"):
        SpeculativeJacobi(variant="copled")
    with pytest.raises(VistokError, match="did you mean repeat-left"):
        SpeculativeJacobi(init="repeat_left")
    with pytest.raises(VistokError, match="at least 2 rows"):
        SpeculativeJacobi(window=1)
    with pytest.raises(VistokError, match="or 'auto', not 'wide'"):
        SpeculativeJacobi(window="wide")


def test_the_window_follows_from_the_cost_of_a_pass():
    free = dict.fromkeys((1, 2, 4, 8, 16, 32), 1.0)
    dear = {width: float(width) for width in free}
    assert best_window(free) == 32 and best_window(dear) == 1  # drafting cannot pay where a pass costs by its width
    assert best_window({1: 1.0, 2: 1.1, 8: 1.3, 32: 4.0}) == 8


@pytest.mark.parametrize("name", MAKERS)
def test_statistics_tell_which_tokens_were_accepted_drafts(name):
    _, stats, _ = decode(*MAKERS[name](), law=SamplingParams(), batch=4, length=30)
    for sample in range(4):
        drafted = stats.drafted(sample)
        assert int(drafted.sum()) == int(stats.accepted[sample]) and not bool(drafted[0])
