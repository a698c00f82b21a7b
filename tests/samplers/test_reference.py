"""The loop does what speculative sampling on one screen does: the same sequences and the same number of steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency

from tests.samplers.reference import speculate
from tests.samplers.toy import TableDrafter, TableTarget, context_p_value, decode
from vistok.samplers import SamplingParams
from vistok.samplers.tree import LawKind, TreeShape
from vistok.samplers.verifiers.candidates import SampleMatch, TreeVerifier
from vistok.samplers.verifiers.exact import ExactChain
from vistok.samplers.verifiers.rules import RecursiveRejection

PARAMS = SamplingParams(guidance=2.0, temperature=0.8, top_k=3)
VOCABULARY, LENGTH, RUNS = 4, 8, 6000
RECURSIVE = TreeVerifier(RecursiveRejection(True), frozenset({LawKind.INDEPENDENT}))
CHAIN, TREE = (1, 1, 1), (3, 2)


def shape_of(widths):
    levels = [[()]]
    for width in widths:
        levels.append([(*path, i) for path in levels[-1] for i in range(width)])
    return TreeShape.of_paths([path for level in levels[1:] for path in level])


def drafter_of(widths):
    drafter = TableDrafter(shape_of(widths), LawKind.INDEPENDENT, VOCABULARY)
    drafter.chain = set(widths) == {1}
    return drafter


def reference(widths, seed=0):
    """Tokens [RUNS, LENGTH] of the reference on the toy target with the toy's drafts, and the steps of each run."""
    exact = TableTarget(PARAMS, 1, LENGTH, VOCABULARY).exact().numpy()
    table = drafter_of(widths).table.numpy()
    random = np.random.default_rng(seed)

    def target(tokens):
        before, last = [0, 0, *tokens][-2:]
        return exact[last, before]

    runs = [speculate(target, lambda tokens: table[tokens[-1]], widths, LENGTH, random) for _ in range(RUNS)]
    return torch.tensor([tokens for tokens, _ in runs]), torch.tensor([steps for _, steps in runs])


def same_law(a, b):
    """The p-value of the hypothesis that two samples of small integers follow one law."""
    size = int(max(a.max(), b.max())) + 1
    counts = torch.stack([torch.bincount(x, minlength=size) for x in (a, b)])
    counts = counts[:, counts.sum(0) > 10]
    return chi2_contingency(counts.numpy()).pvalue


def endings(tokens):
    """The last three tokens of each sequence as one number."""
    return tokens[:, -3] * VOCABULARY**2 + tokens[:, -2] * VOCABULARY + tokens[:, -1]


@pytest.mark.parametrize("widths", [CHAIN, TREE])
def test_the_reference_follows_the_exact_law(widths):
    tokens, steps = reference(widths)
    assert context_p_value(tokens, TableTarget(PARAMS, 1, LENGTH, VOCABULARY).exact()) > 1e-3
    assert steps.double().mean() < LENGTH - 1


@pytest.mark.parametrize(
    ("widths", "verifier"),
    [(CHAIN, ExactChain()), (CHAIN, RECURSIVE), (TREE, RECURSIVE)],
    ids=["chain", "chain-as-tree", "tree"],
)
def test_the_loop_does_what_the_reference_does(widths, verifier):
    tokens, steps = reference(widths)
    mine, stats, _ = decode(drafter_of(widths), verifier, PARAMS, RUNS, LENGTH, VOCABULARY)
    assert same_law(endings(tokens), endings(mine)) > 1e-3
    assert same_law(steps, stats.forwards) > 1e-3


def test_a_rule_that_accepts_less_is_told_apart_by_its_steps():
    tokens, steps = reference(TREE)
    mine, stats, _ = decode(drafter_of(TREE), SampleMatch(), PARAMS, RUNS, LENGTH, VOCABULARY)
    assert same_law(endings(tokens), endings(mine)) > 1e-3
    assert same_law(steps, stats.forwards) < 1e-6
