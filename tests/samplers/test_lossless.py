"""Whatever says it is lossless decides tokens by the target's law; broken versions of it are caught by the same test.

The test is a chi-square of next tokens by their context over long sequences: joint cells of a few tokens miss faults
that only show when sequences of a batch accept different lengths.
"""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chi2

from tests.samplers.toy import TableDrafter, context_p_value, decode
from vistok.ops import draw
from vistok.samplers import SamplingParams
from vistok.samplers.drafters.jacobi import INITS, JacobiWindow
from vistok.samplers.drafters.plain import Draw, NoDraft
from vistok.samplers.noise import ACCEPT, DRAW, RESIDUAL
from vistok.samplers.tree import LawKind, TreeShape
from vistok.samplers.verifiers.candidates import SampleMatch, TreeVerifier, exact_tree
from vistok.samplers.verifiers.exact import ExactChain
from vistok.samplers.verifiers.relaxed import RelaxedTree
from vistok.samplers.verifiers.rules import KSequential, OneHot, RecursiveRejection

LAWS = [
    pytest.param(SamplingParams(), id="plain"),
    pytest.param(SamplingParams(guidance=3.0), id="guidance"),
    pytest.param(SamplingParams(guidance=2.0, top_k=3), id="guidance-top-k"),
    pytest.param(SamplingParams(guidance=2.0, temperature=0.7, top_p=0.9), id="guidance-temperature-top-p"),
]
TREE = TreeShape.of_paths([(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1)])
ANY = frozenset(LawKind)


def p_values(make, law=None, seeds=3, batch=1500, **options):
    """One p-value for each seed; ``make`` builds a drafter and a verifier."""
    found = []
    for seed in range(seeds):
        tokens, _, target = decode(*make(), law=law, batch=batch, seed=seed, **options)
        found.append(context_p_value(tokens, target.exact()))
    return found


def assert_lossless(make, law=None, **options):
    found = p_values(make, law, **options)
    assert min(found) > 1e-4 and max(found) > 0.05, found


def assert_caught(make, law=None, **options):
    found = p_values(make, law, seeds=1, **options)
    assert max(found) < 1e-6, found


@pytest.mark.parametrize("law", LAWS)
def test_plain_decoding_follows_the_law(law):
    assert_lossless(lambda: (NoDraft(), Draw()), law)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("coupled", [False, True])
def test_speculative_jacobi_is_lossless_under_every_law(coupled, law):
    assert_lossless(lambda: (JacobiWindow(6, 5, "uniform", coupled), ExactChain()), law)


@pytest.mark.parametrize("init", INITS)
def test_speculative_jacobi_is_lossless_from_every_initialisation(init):
    assert_lossless(lambda: (JacobiWindow(10, 5, init), ExactChain()))


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(
    ("kind", "verifier"),
    [
        pytest.param(LawKind.INDEPENDENT, TreeVerifier(RecursiveRejection(True), ANY), id="recursive-independent"),
        pytest.param(LawKind.INDEPENDENT, TreeVerifier(KSequential(), ANY), id="k-sequential"),
        pytest.param(LawKind.WITHOUT_REPLACEMENT, TreeVerifier(RecursiveRejection(False), ANY), id="recursive-without"),
        pytest.param(LawKind.DETERMINISTIC, TreeVerifier(OneHot(), ANY), id="one-hot"),
        pytest.param(LawKind.DETERMINISTIC, SampleMatch(), id="match-deterministic"),
        pytest.param(LawKind.WITHOUT_REPLACEMENT, SampleMatch(), id="match-without"),
        pytest.param(LawKind.INDEPENDENT, SampleMatch(), id="match-independent"),
    ],
)
def test_tree_verifiers_are_lossless(kind, verifier, law):
    assert_lossless(lambda: (TableDrafter(TREE, kind, 4), verifier), law, length=16, seeds=2)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: (JacobiWindow(8, 5, "repeat-up"), ExactChain()), id="coupled"),
        pytest.param(
            lambda: (TableDrafter(TREE, LawKind.WITHOUT_REPLACEMENT, 4), exact_tree(LawKind.WITHOUT_REPLACEMENT)),
            id="recursive",
        ),
    ],
)
def test_long_sequences_in_batches_of_four_are_lossless(make):
    """Sequences drift far apart, so a verdict, a cache row or a recorded law of a neighbour would show."""
    assert_lossless(make, SamplingParams(guidance=2.0, top_k=3), seeds=1, batch=4, length=1500)


def test_relaxed_verification_without_neighbours_is_lossless():
    nearest = torch.zeros(4, 0, dtype=torch.int64)
    for kind in (LawKind.DETERMINISTIC, LawKind.WITHOUT_REPLACEMENT):
        verifier = RelaxedTree(nearest, 0, 0.0)
        assert verifier.lossless
        assert_lossless(lambda kind=kind, v=verifier: (TableDrafter(TREE, kind, 4), v), length=16, seeds=2)


@pytest.mark.parametrize(
    ("make", "law"),
    [
        pytest.param(lambda: (JacobiWindow(4, 5, "random", False), ExactChain()), SamplingParams(), id="published"),
        pytest.param(lambda: (JacobiWindow(4, 5, "uniform"), ExactChain()), SamplingParams(2.0, top_k=2), id="coupled"),
        pytest.param(
            lambda: (TableDrafter(TREE, LawKind.DETERMINISTIC, 3), SampleMatch()), SamplingParams(), id="match"
        ),
        pytest.param(
            lambda: (TableDrafter(TREE, LawKind.WITHOUT_REPLACEMENT, 3), exact_tree(LawKind.WITHOUT_REPLACEMENT)),
            SamplingParams(2.0, top_k=2),
            id="recursive",
        ),
    ],
)
def test_whole_sequences_follow_the_joint_law(make, law):
    """All 3^5 sequences of five tokens, over 100,000 draws of each sampler."""
    length, size, batch = 5, 3, 100_000
    tokens, _, target = decode(*make(), law=law, batch=batch, length=length, vocabulary=size)
    cells = torch.cartesian_prod(*[torch.arange(size)] * length)
    context = torch.cat([torch.zeros(len(cells), 2, dtype=torch.int64), cells], 1)
    law = target.exact()
    assert not law[tokens[:, 1:-1], tokens[:, :-2], tokens[:, 2:]].eq(0).any()
    chance = torch.stack([law[context[:, i + 1], context[:, i], cells[:, i]] for i in range(length)]).prod(0)
    place = size ** torch.arange(length - 1, -1, -1)
    counts = torch.bincount((tokens * place).sum(1), minlength=size**length).double()
    rare = chance * batch < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([chance[~rare], chance[rare].sum()[None]]) * batch
    statistic = float(((observed - expected) ** 2 / expected.clamp(min=1e-9)).sum())
    assert chi2.sf(statistic, len(expected) - 1) > 1e-4


# Broken on purpose: the same test must see it.


class OldLaws(JacobiWindow):
    """Keeps the recorded law of a draft that survived."""

    def observe(self, run, tree, scores, verdict):
        drafts, laws = self._drafts.clone(), self._laws.clone()
        super().observe(run, tree, scores, verdict)
        source = (verdict.count[:, None] + self._slots - 1).clamp(max=tree.nodes - 2)
        same = drafts.gather(1, source) == self._drafts
        same &= self._slots < self.kept[:, None]
        self._laws = torch.where(same[..., None], laws.gather(1, source[..., None].expand_as(laws)), self._laws)


class SlowestOfFour(ExactChain):
    """Groups of four keep as many tokens as their slowest; what others accepted is tested again against its old law."""

    def verify(self, tree, scores, run):
        verdict = super().verify(tree, scores, run)
        count = verdict.count.view(-1, 4)
        return verdict._replace(count=count.amin(1, keepdim=True).expand_as(count).flatten())


class PublishedBatch(JacobiWindow):
    """Keeps accepted drafts behind the slowest sequence's cut, with their old law, as the published code does."""

    def observe(self, run, tree, scores, verdict):
        p = verdict.probs
        accepted = run.window(tree.nodes, ACCEPT)[:, :-1] * tree.laws.gather(2, tree.tokens[:, 1:, None]).squeeze(
            -1
        ) < p[:, :-1].gather(2, tree.tokens[:, 1:, None]).squeeze(-1)
        passed = accepted.long().cumprod(1).bool()
        drafts, laws = self._drafts.clone(), self._laws.clone()
        super().observe(run, tree, scores, verdict)
        source = (verdict.count[:, None] + self._slots - 1).clamp(max=tree.nodes - 2)
        again = passed.gather(1, source) & (self._slots <= tree.nodes - 1 - verdict.count[:, None])
        self._drafts = torch.where(again, drafts.gather(1, source), self._drafts)
        self._laws = torch.where(again[..., None], laws.gather(1, source[..., None].expand_as(laws)), self._laws)


class ResidualOfTarget(ExactChain):
    """Replaces a rejected draft by a draw from p instead of norm(max(p - q, 0))."""

    def verify(self, tree, scores, run):
        verdict = super().verify(tree, scores, run)
        again = draw(verdict.probs, run.window(tree.nodes, RESIDUAL))
        last = run.window(tree.nodes, DRAW)[:, -1:]
        again = torch.cat([again[:, :-1], draw(verdict.probs[:, -1:], last)], 1)
        end = verdict.count[:, None] - 1
        return verdict._replace(emitted=verdict.emitted.scatter(1, end, again.gather(1, end)))


def test_the_old_law_of_a_kept_draft_is_caught():
    assert_caught(lambda: (OldLaws(6, 5, "uniform"), ExactChain()))


def test_a_batch_that_waits_for_its_slowest_is_caught():
    assert_caught(lambda: (PublishedBatch(6, 5, "random", False), SlowestOfFour()), batch=8000)


def test_a_residual_drawn_from_the_target_is_caught():
    assert_caught(lambda: (JacobiWindow(6, 5, "random", False), ResidualOfTarget()))


def test_a_residual_that_is_processed_again_is_caught():
    params = SamplingParams(top_p=0.6)
    make = lambda again: lambda: (JacobiWindow(6, 5, "random", False), ExactChain(again))  # noqa: E731
    options = {"vocabulary": 8, "scale": 0.6, "batch": 2500}
    assert not ExactChain(reprocess_residual=True).lossless
    assert_caught(make(True), params, **options)
    assert_lossless(make(False), params, seeds=2, **options)


def test_most_likely_candidates_tested_as_if_drawn_are_caught():
    wrong = TreeVerifier(RecursiveRejection(False), ANY)
    claim = LawKind.WITHOUT_REPLACEMENT
    assert_caught(lambda: (TableDrafter(TREE, LawKind.DETERMINISTIC, 4, claim), wrong), length=16)


def test_independent_candidates_tested_as_if_without_replacement_are_caught():
    wrong = TreeVerifier(RecursiveRejection(False), ANY)
    assert_caught(lambda: (TableDrafter(TREE, LawKind.INDEPENDENT, 4), wrong), length=16, batch=15_000)


class Undiminished(OneHot):
    """A rejected candidate keeps its probability."""

    def test(self, state, token, uniform):
        return super().test(state, token, uniform)[0], state


class PlainResidual(KSequential):
    """Draws from the target when no candidate passed."""

    def law(self, state):
        return state[0]


@pytest.mark.parametrize(("rule", "kind"), [(Undiminished(), "DETERMINISTIC"), (PlainResidual(), "INDEPENDENT")])
def test_rules_that_forget_what_they_rejected_are_caught(rule, kind):
    assert_caught(lambda: (TableDrafter(TREE, LawKind[kind], 4), TreeVerifier(rule, ANY)), length=16)


def test_relaxation_is_caught():
    codes = torch.tensor([[1, 2, 3], [0, 2, 3], [3, 0, 1], [2, 0, 1]])
    verifier = RelaxedTree(codes, 1, 0.2)
    assert not verifier.lossless
    assert_caught(lambda: (TableDrafter(TREE, LawKind.DETERMINISTIC, 4), verifier), length=16)
